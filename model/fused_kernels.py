"""The Triton kernels of fused_attention.py: one for the forward pass, two for the backward pass.

The rows of a batch lie in *flat* order: first the text of all documents end to end, then their images, the documents in
the same order. Mt rows of text, Mi of images, M together; H heads of queries, G of keys and values, R = H / G; D the
width of a head, WIDTH the power of two that holds it.

    spans (4, Mt) int32   of each text row the text [spans[0], spans[1]) and the images [spans[2], spans[3]) that it
                          attends to; images are counted from the first image row
    reads (2, M) int32    of each key the text rows [reads[0], reads[1]) that attend to it

All four bounds grow, or stay, from row to row. So a block of rows attends to the keys from its least begin to its
greatest end, and needs no mask between its greatest begin and its least end. Every element of every result is written
by one program, so results repeat bit by bit: there are no atomic operations.

A row of text gets softmax(q K_t^T) V_t + softmax(q K_i^T) V_i, or with JOINT one softmax over the keys of both. A row
of an image gets its own value; its query is never read.

The softmax is computed online in base 2 (Milakov and Gimelshein, arXiv 1805.02867), the backward pass from the saved
log-sum-exps and delta = sum(dO * O) of each branch (Dao, arXiv 2307.08691, algorithm 2).
"""

try:  # not everywhere, and `transformers` must not ask for it when it loads an exported folder's code
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the fused attention needs triton") from error

# Values that depend on the batch: a kernel must not be compiled again for the ones that 16 divides.
_ANY = ["Mt", "Mi", "shape"]


@triton.jit
def _dot(a, b, SUM: tl.constexpr, UPCAST: tl.constexpr):
    """The matrix product, summed in SUM; exact for float32 inputs."""
    if UPCAST:  # Triton's interpreter multiplies bfloat16 as if it were uint16
        return tl.dot(a.to(SUM), b.to(SUM), out_dtype=SUM)
    return tl.dot(a, b, out_dtype=SUM, input_precision="ieee")


@triton.jit
def _load_rows(pointer, offsets, inside, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Load a block of rows (n, WIDTH); zeros where a row is not `inside` (with MASKED) and behind D."""
    if D == WIDTH:
        if MASKED:
            return tl.load(pointer + offsets, mask=inside[:, None], other=0.0)
        return tl.load(pointer + offsets)
    columns = tl.arange(0, WIDTH)[None, :] < D
    if MASKED:
        return tl.load(pointer + offsets, mask=inside[:, None] & columns, other=0.0)
    return tl.load(pointer + offsets, mask=columns, other=0.0)


@triton.jit
def _store_rows(pointer, offsets, values, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Store a block of rows (n, WIDTH) where `inside`, its first D columns."""
    if D == WIDTH:
        tl.store(pointer + offsets, values, mask=inside[:, None])
    else:
        tl.store(pointer + offsets, values, mask=inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D))


@triton.jit
def _bounds(begin, end, BLOCK: tl.constexpr):
    """Of rows that read [begin, end): where their block begins, may leave out the mask from and to, and ends."""
    first, last = tl.min(begin, 0), tl.max(end, 0)
    whole = tl.minimum(tl.max(begin, 0), last)
    return first, whole, whole + tl.maximum(tl.min(end, 0) - whole, 0) // BLOCK * BLOCK, last


@triton.jit
def _softmax_over(
    out, most, total, q, K, V, sk, sv, first, last, begin, end, scale,
    MASKED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Add the keys [first, last) to the softmax of a block of queries: its output, greatest score and sum."""
    columns = tl.arange(0, WIDTH)
    block = tl.arange(0, BN)
    at_k = block[:, None] * sk + columns[None, :]
    at_v = block[:, None] * sv + columns[None, :]
    for start in range(first, last, BN):
        row = start + block
        inside = row < last
        k = _load_rows(K + start * sk.to(tl.int64), at_k, inside, D, WIDTH, MASKED)
        v = _load_rows(V + start * sv.to(tl.int64), at_v, inside, D, WIDTH, MASKED)
        score = _dot(q, tl.trans(k), SUM, UPCAST) * scale
        if MASKED:
            reads = inside[None, :] & (row[None, :] >= begin[:, None]) & (row[None, :] < end[:, None])
            score = tl.where(reads, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        p = tl.exp2(score - new[:, None])
        shrink = tl.exp2(most - new)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + _dot(p.to(v.dtype), v, SUM, UPCAST)
        most = new
    return out, most, total


@triton.jit
def _attend_span(
    out, most, total, q, K, V, sk, sv, begin, end, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`_softmax_over` the keys [begin, end) of each query: with a mask at both ends of the block, without between."""
    first, whole, part, last = _bounds(begin, end, BN)
    out, most, total = _softmax_over(
        out, most, total, q, K, V, sk, sv, first, whole, begin, end, scale, True, D, WIDTH, BN, SUM, UPCAST
    )
    out, most, total = _softmax_over(
        out, most, total, q, K, V, sk, sv, whole, part, begin, end, scale, False, D, WIDTH, BN, SUM, UPCAST
    )
    return _softmax_over(
        out, most, total, q, K, V, sk, sv, part, last, begin, end, scale, True, D, WIDTH, BN, SUM, UPCAST
    )


@triton.jit
def _normalise(out, most, total):
    """The output of a softmax, and its log-sum-exp in base 2; zero and infinity where there was no key."""
    some = total > 0
    safe = tl.where(some, total, 1.0)
    return out / safe[:, None], tl.where(some, most + tl.log2(safe), float("inf"))


@triton.jit(do_not_specialize=_ANY)
def forward_kernel(
    Q, K, V, OUT, OUT_TEXT, LSE, SPANS,
    sq, hq, sk, hk, sv, hv, Mt, Mi, H, R, scale, shape,
    JOINT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The output OUT (M, H, D) of all rows, the log-sum-exps LSE (1 or 2, H, Mt), and OUT_TEXT (Mt, H, D) of the text.

    `sq`, `hq` (and so on) are the distances of rows and of heads; `shape` is only for the choice of the launch. Launched over blocks of BM rows, and heads.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    group = (head // R).to(tl.int64)
    texts = tl.cdiv(Mt, BM)
    columns = tl.arange(0, WIDTH)
    width = H * D
    K += group * hk
    V += group * hv
    OUT += head * D
    if block >= texts:
        row = (block - texts) * BM + tl.arange(0, BM)
        inside = row < Mi
        row = Mt + row.to(tl.int64)
        values = _load_rows(V, row[:, None] * sv + columns[None, :], inside, D, WIDTH, True)
        _store_rows(OUT, row[:, None] * width + columns[None, :], values, inside, D, WIDTH)
    else:
        # The last rows attend to most keys: begin with them, so that no long one is left over at the end.
        row = (texts - 1 - block) * BM + tl.arange(0, BM)
        inside = row < Mt
        safe = tl.minimum(row, Mt - 1)
        wide = row.to(tl.int64)
        q = _load_rows(Q + head.to(tl.int64) * hq, wide[:, None] * sq + columns[None, :], inside, D, WIDTH, True)
        out = tl.zeros([BM, WIDTH], SUM)
        most = tl.full([BM], -1.0e30, SUM)
        total = tl.zeros([BM], SUM)
        out, most, total = _attend_span(
            out, most, total, q, K, V, sk, sv, tl.load(SPANS + safe), tl.load(SPANS + Mt + safe), scale,
            D, WIDTH, BN, SUM, UPCAST,
        )  # fmt: skip
        at = wide[:, None] * width + columns[None, :]
        K += Mt.to(tl.int64) * sk
        V += Mt.to(tl.int64) * sv
        if JOINT:
            out, most, total = _attend_span(
                out, most, total, q, K, V, sk, sv, tl.load(SPANS + 2 * Mt + safe), tl.load(SPANS + 3 * Mt + safe),
                scale, D, WIDTH, BN, SUM, UPCAST,
            )  # fmt: skip
            out, lse = _normalise(out, most, total)
            tl.store(LSE + head * Mt + row, lse, mask=inside)
            _store_rows(OUT, at, out.to(OUT.dtype.element_ty), inside, D, WIDTH)
        else:
            out, lse = _normalise(out, most, total)
            tl.store(LSE + head * Mt + row, lse, mask=inside)
            _store_rows(OUT_TEXT + head * D, at, out.to(OUT.dtype.element_ty), inside, D, WIDTH)
            image = tl.zeros([BM, WIDTH], SUM)
            most = tl.full([BM], -1.0e30, SUM)
            total = tl.zeros([BM], SUM)
            image, most, total = _attend_span(
                image, most, total, q, K, V, sk, sv, tl.load(SPANS + 2 * Mt + safe), tl.load(SPANS + 3 * Mt + safe),
                scale, D, WIDTH, BN, SUM, UPCAST,
            )  # fmt: skip
            image, lse = _normalise(image, most, total)
            tl.store(LSE + (H + head) * Mt + row, lse, mask=inside)
            _store_rows(OUT, at, (out + image).to(OUT.dtype.element_ty), inside, D, WIDTH)


@triton.jit
def _query_gradient_over(
    dq, q, do, lse, delta, K, V, sk, sv, first, last, begin, end, scale,
    MASKED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what the keys [first, last) contribute to the gradient of a block of queries."""
    columns = tl.arange(0, WIDTH)
    block = tl.arange(0, BN)
    at_k = block[:, None] * sk + columns[None, :]
    at_v = block[:, None] * sv + columns[None, :]
    for start in range(first, last, BN):
        row = start + block
        inside = row < last
        k = _load_rows(K + start * sk.to(tl.int64), at_k, inside, D, WIDTH, MASKED)
        v = _load_rows(V + start * sv.to(tl.int64), at_v, inside, D, WIDTH, MASKED)
        p = tl.exp2(_dot(q, tl.trans(k), SUM, UPCAST) * scale - lse[:, None])
        if MASKED:
            reads = inside[None, :] & (row[None, :] >= begin[:, None]) & (row[None, :] < end[:, None])
            p = tl.where(reads, p, 0.0)
        ds = p * (_dot(do, tl.trans(v), SUM, UPCAST) - delta[:, None])
        dq += _dot(ds.to(k.dtype), k, SUM, UPCAST)
    return dq


@triton.jit
def _query_gradient(
    dq, q, do, lse, delta, K, V, sk, sv, begin, end, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`_query_gradient_over` the keys [begin, end) of each query."""
    first, whole, part, last = _bounds(begin, end, BN)
    dq = _query_gradient_over(
        dq, q, do, lse, delta, K, V, sk, sv, first, whole, begin, end, scale, True, D, WIDTH, BN, SUM, UPCAST
    )
    dq = _query_gradient_over(
        dq, q, do, lse, delta, K, V, sk, sv, whole, part, begin, end, scale, False, D, WIDTH, BN, SUM, UPCAST
    )
    return _query_gradient_over(
        dq, q, do, lse, delta, K, V, sk, sv, part, last, begin, end, scale, True, D, WIDTH, BN, SUM, UPCAST
    )


@triton.jit(do_not_specialize=_ANY)
def query_gradient_kernel(
    Q, K, V, OUT, OUT_TEXT, DO, DQ, LSE, DELTA, SPANS,
    sq, hq, sk, hk, sv, hv, sdo, hdo, Mt, Mi, H, R, scale, factor, shape,
    JOINT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """DQ (M, H, D), and DELTA (1 or 2, H, Mt) for the other kernel. Launched over blocks of BM rows, and heads."""
    block, head = tl.program_id(0), tl.program_id(1)
    group = (head // R).to(tl.int64)
    texts = tl.cdiv(Mt, BM)
    columns = tl.arange(0, WIDTH)
    width = H * D
    DQ += head * D
    if block >= texts:
        row = (block - texts) * BM + tl.arange(0, BM)
        at = (Mt + row.to(tl.int64))[:, None] * width + columns[None, :]
        _store_rows(DQ, at, tl.zeros([BM, WIDTH], DQ.dtype.element_ty), row < Mi, D, WIDTH)
    else:
        row = (texts - 1 - block) * BM + tl.arange(0, BM)
        inside = row < Mt
        safe = tl.minimum(row, Mt - 1)
        wide = row.to(tl.int64)[:, None]
        at = wide * width + columns[None, :]
        K += group * hk
        V += group * hv
        q = _load_rows(Q + head.to(tl.int64) * hq, wide * sq + columns[None, :], inside, D, WIDTH, True)
        do = _load_rows(DO + head.to(tl.int64) * hdo, wide * sdo + columns[None, :], inside, D, WIDTH, True)
        out = _load_rows(OUT + head * D, at, inside, D, WIDTH, True).to(SUM)
        lse = tl.load(LSE + head * Mt + safe)
        if JOINT:
            delta = tl.sum(do.to(SUM) * out, 1)
            image_lse, image_delta = lse, delta
        else:
            text = _load_rows(OUT_TEXT + head * D, at, inside, D, WIDTH, True).to(SUM)
            delta = tl.sum(do.to(SUM) * text, 1)
            image_lse = tl.load(LSE + (H + head) * Mt + safe)
            image_delta = tl.sum(do.to(SUM) * (out - text), 1)
            tl.store(DELTA + (H + head) * Mt + row, image_delta, mask=inside)
        tl.store(DELTA + head * Mt + row, delta, mask=inside)
        dq = tl.zeros([BM, WIDTH], SUM)
        dq = _query_gradient(
            dq, q, do, lse, delta, K, V, sk, sv, tl.load(SPANS + safe), tl.load(SPANS + Mt + safe), scale,
            D, WIDTH, BN, SUM, UPCAST,
        )  # fmt: skip
        K += Mt.to(tl.int64) * sk
        V += Mt.to(tl.int64) * sv
        dq = _query_gradient(
            dq, q, do, image_lse, image_delta, K, V, sk, sv, tl.load(SPANS + 2 * Mt + safe),
            tl.load(SPANS + 3 * Mt + safe), scale, D, WIDTH, BN, SUM, UPCAST,
        )  # fmt: skip
        _store_rows(DQ, at, (dq * factor).to(DQ.dtype.element_ty), inside, D, WIDTH)


@triton.jit(do_not_specialize=_ANY)
def key_gradient_kernel(
    Q, K, V, DO, DK, DV, LSE, DELTA, READS,
    sq, hq, sk, hk, sv, hv, sdo, hdo, Mt, Mi, H, R, scale, factor, shape,
    JOINT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """DK and DV (M, G, D), summed over the heads of a group. Launched over blocks of BN keys, and groups.

    One loop with a mask: with a second one without, registers spill.
    """
    block, group = tl.program_id(0), tl.program_id(1)
    texts = tl.cdiv(Mt, BN)
    columns = tl.arange(0, WIDTH)
    is_image = block >= texts
    first_row = tl.where(is_image, Mt + (block - texts) * BN, block * BN)
    limit = tl.where(is_image, Mt + Mi, Mt)
    row = first_row + tl.arange(0, BN)
    inside = row < limit
    safe = tl.minimum(row, limit - 1)
    wide = row.to(tl.int64)[:, None]
    k = _load_rows(K + group.to(tl.int64) * hk, wide * sk + columns[None, :], inside, D, WIDTH, True)
    v = _load_rows(V + group.to(tl.int64) * hv, wide * sv + columns[None, :], inside, D, WIDTH, True)
    begin, end = tl.load(READS + safe), tl.load(READS + Mt + Mi + safe)
    first, last = tl.min(begin, 0), tl.max(end, 0)
    branch = 0 if JOINT else is_image.to(tl.int32) * H * Mt
    dk = tl.zeros([BN, WIDTH], SUM)
    dv = tl.zeros([BN, WIDTH], SUM)
    queries = tl.arange(0, BM)
    at_q = queries[:, None] * sq + columns[None, :]
    at_do = queries[:, None] * sdo + columns[None, :]
    for number in range(0, R):
        head = group * R + number
        Q_head, DO_head = Q + head.to(tl.int64) * hq, DO + head.to(tl.int64) * hdo
        LSE_head, DELTA_head = LSE + branch + head * Mt, DELTA + branch + head * Mt
        for start in range(first, last, BM):
            query = start + queries
            reading = query < last
            q = _load_rows(Q_head + start * sq.to(tl.int64), at_q, reading, D, WIDTH, True)
            do = _load_rows(DO_head + start * sdo.to(tl.int64), at_do, reading, D, WIDTH, True)
            lse = tl.load(LSE_head + query, mask=reading, other=float("inf"))
            delta = tl.load(DELTA_head + query, mask=reading, other=0.0)
            p = tl.exp2(_dot(k, tl.trans(q), SUM, UPCAST) * scale - lse[None, :])
            reads = reading[None, :] & (query[None, :] >= begin[:, None]) & (query[None, :] < end[:, None])
            p = tl.where(reads, p, 0.0)
            dv += _dot(p.to(do.dtype), do, SUM, UPCAST)
            ds = p * (_dot(v, tl.trans(do), SUM, UPCAST) - delta[None, :])
            dk += _dot(ds.to(q.dtype), q, SUM, UPCAST)
        if is_image:  # an image row is a copy of its value
            dv += _load_rows(DO_head, wide * sdo + columns[None, :], inside, D, WIDTH, True).to(SUM)
    _store_rows(
        DK + group * D,
        wide * ((H // R) * D) + columns[None, :],
        (dk * factor).to(DK.dtype.element_ty),
        inside,
        D,
        WIDTH,
    )
    _store_rows(DV + group * D, wide * ((H // R) * D) + columns[None, :], dv.to(DV.dtype.element_ty), inside, D, WIDTH)

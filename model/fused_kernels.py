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

# A kernel must not be compiled again for batches whose sizes 16 divides. Nor for one head in a group: where the
# compiler knows of it, Triton 3.6 moves accumulators so that the products of a Hopper GPU wait for each other.
_ANY = ["Mt", "Mi", "H", "R", "shape"]


@triton.jit
def _dot(a, b, SUM: tl.constexpr, UPCAST: tl.constexpr):
    """The matrix product, summed in SUM; exact for float32 inputs."""
    if UPCAST:  # Triton's interpreter multiplies bfloat16 as if it were uint16
        return tl.dot(a.to(SUM), b.to(SUM), out_dtype=SUM)
    return tl.dot(a, b, out_dtype=SUM, input_precision="ieee")


@triton.jit
def _load_rows(pointer, offsets, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Load a block of rows (n, WIDTH); zeros where a row is not `inside`, and behind the first D columns."""
    if D == WIDTH:
        return tl.load(pointer + offsets, mask=inside[:, None], other=0.0)
    return tl.load(pointer + offsets, mask=inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D), other=0.0)


@triton.jit
def _store_rows(pointer, offsets, values, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Store a block of rows (n, WIDTH) where `inside`, its first D columns."""
    if D == WIDTH:
        tl.store(pointer + offsets, values, mask=inside[:, None])
    else:
        tl.store(pointer + offsets, values, mask=inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D))


@triton.jit
def _bounds(begin, end):
    """Of rows that read [begin, end): where their block begins and ends, and between what it needs no mask."""
    return tl.min(begin, 0), tl.max(end, 0), tl.max(begin, 0), tl.min(end, 0)


@triton.jit
def _softmax_over(
    out, most, total, q, K, V, sk, sv, begin, end, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add the keys [begin, end) of each query to the softmax of a block: its output, greatest score and sum.

    The mask is applied in a branch of one loop: a loop without it between two with it takes more registers.
    """
    columns = tl.arange(0, WIDTH)[None, :]
    block = tl.arange(0, BN)
    at_k = block[:, None] * sk + columns
    at_v = block[:, None] * sv + columns
    first, last, whole_from, whole_to = _bounds(begin, end)
    for start in range(first, last, BN):
        row = start + block
        inside = row < last
        k = _load_rows(K + start * sk.to(tl.int64), at_k, inside, D, WIDTH)
        v = _load_rows(V + start * sv.to(tl.int64), at_v, inside, D, WIDTH)
        score = _dot(q, tl.trans(k), SUM, UPCAST)
        if (start < whole_from) | (start + BN > whole_to):
            reads = (row[None, :] >= begin[:, None]) & (row[None, :] < end[:, None])
            score = tl.where(reads, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1) * scale)
        p = tl.exp2(score * scale - new[:, None])
        shrink = tl.exp2(most - new)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + _dot(p.to(v.dtype), v, SUM, UPCAST)
        most = new
    return out, most, total


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

    `sq`, `hq` (and so on) are the distances of rows and of heads; `shape` is only for the choice of the launch.
    Launched over blocks of BM rows, and heads.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    group = (head // R).to(tl.int64)
    texts = tl.cdiv(Mt, BM)
    columns = tl.arange(0, WIDTH)[None, :]
    rows = tl.arange(0, BM)
    at_out = rows[:, None] * (H * D) + columns
    K += group * hk
    V += group * hv
    OUT += head * D
    if block >= texts:
        start = (block - texts) * BM
        inside = rows < Mi - start
        V += (Mt + start) * sv.to(tl.int64)
        values = _load_rows(V, rows[:, None] * sv + columns, inside, D, WIDTH)
        _store_rows(OUT + (Mt + start).to(tl.int64) * (H * D), at_out, values, inside, D, WIDTH)
    else:
        # The last rows attend to most keys: begin with them, so that no long one is left over at the end.
        start = (texts - 1 - block) * BM
        inside = rows < Mt - start
        spans = SPANS + tl.minimum(start + rows, Mt - 1)
        LSE += head * Mt + start
        Q += head.to(tl.int64) * hq + start * sq.to(tl.int64)
        OUT += start.to(tl.int64) * (H * D)
        q = _load_rows(Q, rows[:, None] * sq + columns, inside, D, WIDTH)
        out = tl.zeros([BM, WIDTH], SUM)
        most = tl.full([BM], -1.0e30, SUM)
        total = tl.zeros([BM], SUM)
        out, most, total = _softmax_over(
            out, most, total, q, K, V, sk, sv, tl.load(spans), tl.load(spans + Mt), scale, D, WIDTH, BN, SUM, UPCAST
        )
        K += Mt * sk.to(tl.int64)
        V += Mt * sv.to(tl.int64)
        if JOINT:
            out, most, total = _softmax_over(
                out, most, total, q, K, V, sk, sv, tl.load(spans + 2 * Mt), tl.load(spans + 3 * Mt), scale,
                D, WIDTH, BN, SUM, UPCAST,
            )  # fmt: skip
            out, lse = _normalise(out, most, total)
            tl.store(LSE + rows, lse, mask=inside)
            _store_rows(OUT, at_out, out.to(OUT.dtype.element_ty), inside, D, WIDTH)
        else:
            out, lse = _normalise(out, most, total)
            tl.store(LSE + rows, lse, mask=inside)
            OUT_TEXT += head * D + start.to(tl.int64) * (H * D)
            _store_rows(OUT_TEXT, at_out, out.to(OUT.dtype.element_ty), inside, D, WIDTH)
            image = tl.zeros([BM, WIDTH], SUM)
            most = tl.full([BM], -1.0e30, SUM)
            total = tl.zeros([BM], SUM)
            image, most, total = _softmax_over(
                image, most, total, q, K, V, sk, sv, tl.load(spans + 2 * Mt), tl.load(spans + 3 * Mt), scale,
                D, WIDTH, BN, SUM, UPCAST,
            )  # fmt: skip
            image, lse = _normalise(image, most, total)
            tl.store(LSE + H * Mt + rows, lse, mask=inside)
            # The text's part is read back: registers would spill if they kept it. Another thread may have written it.
            tl.debug_barrier()
            image += _load_rows(OUT_TEXT, at_out, inside, D, WIDTH).to(SUM)
            _store_rows(OUT, at_out, image.to(OUT.dtype.element_ty), inside, D, WIDTH)


@triton.jit
def _query_gradient(
    dq, q, do, lse, delta, K, V, sk, sv, begin, end, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what the keys [begin, end) of each query contribute to the gradient of a block of queries."""
    columns = tl.arange(0, WIDTH)[None, :]
    block = tl.arange(0, BN)
    at_k = block[:, None] * sk + columns
    at_v = block[:, None] * sv + columns
    first, last, whole_from, whole_to = _bounds(begin, end)
    for start in range(first, last, BN):
        row = start + block
        inside = row < last
        k = _load_rows(K + start * sk.to(tl.int64), at_k, inside, D, WIDTH)
        v = _load_rows(V + start * sv.to(tl.int64), at_v, inside, D, WIDTH)
        p = tl.exp2(_dot(q, tl.trans(k), SUM, UPCAST) * scale - lse[:, None])
        if (start < whole_from) | (start + BN > whole_to):
            reads = (row[None, :] >= begin[:, None]) & (row[None, :] < end[:, None])
            p = tl.where(reads, p, 0.0)
        ds = p * (_dot(do, tl.trans(v), SUM, UPCAST) - delta[:, None])
        dq += _dot(ds.to(k.dtype), k, SUM, UPCAST)
    return dq


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
    columns = tl.arange(0, WIDTH)[None, :]
    rows = tl.arange(0, BM)
    at_out = rows[:, None] * (H * D) + columns
    DQ += head * D
    if block >= texts:
        start = (block - texts) * BM
        DQ += (Mt + start).to(tl.int64) * (H * D)
        _store_rows(DQ, at_out, tl.zeros([BM, WIDTH], DQ.dtype.element_ty), rows < Mi - start, D, WIDTH)
    else:
        start = (texts - 1 - block) * BM
        inside = rows < Mt - start
        spans = SPANS + tl.minimum(start + rows, Mt - 1)
        K += group * hk
        V += group * hv
        Q += head.to(tl.int64) * hq + start * sq.to(tl.int64)
        DO += head.to(tl.int64) * hdo + start * sdo.to(tl.int64)
        LSE += head * Mt + start
        DELTA += head * Mt + start
        first_out = head * D + start.to(tl.int64) * (H * D)
        q = _load_rows(Q, rows[:, None] * sq + columns, inside, D, WIDTH)
        do = _load_rows(DO, rows[:, None] * sdo + columns, inside, D, WIDTH)
        out = _load_rows(OUT + first_out, at_out, inside, D, WIDTH).to(SUM)
        lse = tl.load(LSE + rows, mask=inside, other=float("inf"))
        if JOINT:
            delta = tl.sum(do.to(SUM) * out, 1)
            image_lse, image_delta = lse, delta
        else:
            text = _load_rows(OUT_TEXT + first_out, at_out, inside, D, WIDTH).to(SUM)
            delta = tl.sum(do.to(SUM) * text, 1)
            image_lse = tl.load(LSE + H * Mt + rows, mask=inside, other=float("inf"))
            image_delta = tl.sum(do.to(SUM) * (out - text), 1)
            tl.store(DELTA + H * Mt + rows, image_delta, mask=inside)
        tl.store(DELTA + rows, delta, mask=inside)
        dq = tl.zeros([BM, WIDTH], SUM)
        dq = _query_gradient(
            dq, q, do, lse, delta, K, V, sk, sv, tl.load(spans), tl.load(spans + Mt), scale, D, WIDTH, BN, SUM, UPCAST
        )
        K += Mt * sk.to(tl.int64)
        V += Mt * sv.to(tl.int64)
        dq = _query_gradient(
            dq, q, do, image_lse, image_delta, K, V, sk, sv, tl.load(spans + 2 * Mt), tl.load(spans + 3 * Mt), scale,
            D, WIDTH, BN, SUM, UPCAST,
        )  # fmt: skip
        _store_rows(DQ + start.to(tl.int64) * (H * D), at_out, (dq * factor).to(DQ.dtype.element_ty), inside, D, WIDTH)


@triton.jit(do_not_specialize=_ANY)
def key_gradient_kernel(
    Q, K, V, DO, DK, DV, LSE, DELTA, READS,
    sq, hq, sk, hk, sv, hv, sdo, hdo, Mt, Mi, H, R, scale, factor, shape,
    JOINT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """DK and DV (M, G, D), summed over the heads of a group. Launched over blocks of BN keys, and groups."""
    block, group = tl.program_id(0), tl.program_id(1)
    texts = tl.cdiv(Mt, BN)
    columns = tl.arange(0, WIDTH)[None, :]
    rows = tl.arange(0, BN)
    is_image = block >= texts
    start_key = tl.where(is_image, Mt + (block - texts) * BN, block * BN)
    limit = tl.where(is_image, Mt + Mi, Mt)
    inside = rows < limit - start_key
    K += group.to(tl.int64) * hk + start_key * sk.to(tl.int64)
    V += group.to(tl.int64) * hv + start_key * sv.to(tl.int64)
    Q += group.to(tl.int64) * R * hq
    DO += group.to(tl.int64) * R * hdo
    k = _load_rows(K, rows[:, None] * sk + columns, inside, D, WIDTH)
    v = _load_rows(V, rows[:, None] * sv + columns, inside, D, WIDTH)
    reads = READS + tl.minimum(start_key + rows, limit - 1)
    begin, end = tl.load(reads), tl.load(reads + Mt + Mi)
    first = tl.min(begin, 0)  # from here on queries are counted from this one
    begin -= first
    end -= first
    _, last, whole_from, whole_to = _bounds(begin, end)
    steps = tl.cdiv(tl.maximum(last, 0), BM)
    branch = 0 if JOINT else is_image.to(tl.int32) * H * Mt
    LSE += branch + group * R * Mt + first
    DELTA += branch + group * R * Mt + first
    dk = tl.zeros([BN, WIDTH], SUM)
    dv = tl.zeros([BN, WIDTH], SUM)
    if is_image:  # an image row is a copy of its value
        own = DO + start_key * sdo.to(tl.int64)
        for _ in range(R):
            dv += _load_rows(own, rows[:, None] * sdo + columns, inside, D, WIDTH).to(SUM)
            own += hdo
    Q += first * sq.to(tl.int64)
    DO += first * sdo.to(tl.int64)
    queries = tl.arange(0, BM)
    at_q = queries[:, None] * sq + columns
    at_do = queries[:, None] * sdo + columns
    for step in range(R * steps):  # over all blocks of queries of the first head, then those of the next
        head = step // steps
        start = step % steps * BM
        query = start + queries
        exists = query < last
        q = _load_rows(Q + (head * hq.to(tl.int64) + start * sq.to(tl.int64)), at_q, exists, D, WIDTH)
        do = _load_rows(DO + (head * hdo.to(tl.int64) + start * sdo.to(tl.int64)), at_do, exists, D, WIDTH)
        lse = tl.load(LSE + head * Mt + query, mask=exists, other=float("inf"))
        delta = tl.load(DELTA + head * Mt + query, mask=exists, other=0.0)
        score = _dot(k, tl.trans(q), SUM, UPCAST)
        dp = _dot(v, tl.trans(do), SUM, UPCAST)
        p = tl.exp2(score * scale - lse[None, :])
        if (start < whole_from) | (start + BM > whole_to):
            p = tl.where((query[None, :] >= begin[:, None]) & (query[None, :] < end[:, None]), p, 0.0)
        dv += _dot(p.to(do.dtype), do, SUM, UPCAST)
        ds = p * (dp - delta[None, :])  # while the product above is computed
        dk += _dot(ds.to(q.dtype), q, SUM, UPCAST)
    width = H // R * D
    at_out = rows[:, None] * width + columns
    first_out = group * D + start_key.to(tl.int64) * width
    _store_rows(DK + first_out, at_out, (dk * factor).to(DK.dtype.element_ty), inside, D, WIDTH)
    _store_rows(DV + first_out, at_out, dv.to(DV.dtype.element_ty), inside, D, WIDTH)

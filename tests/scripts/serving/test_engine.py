"""The engine: answers in a batch equal those of a single chat, and jobs do not affect each other."""

import hashlib
import queue
import threading
import time

import pytest
import torch
from PIL import Image

from model.chat import ChatSession
from model.image_cache import ImageCache
from scripts.serving.engine import BatchingEngine, EngineClosedError, EngineSettings, QueueFullError
from scripts.serving.jobs import CANCELLED, ERROR, LENGTH, STOP, TIMEOUT, Job, SamplingParams
from tests.scripts.evaluation.trained_model import trained
from tests.scripts.serving.running_server import COLOUR, COUNT, load
from tests.tiny_models import user

__all__ = ["trained"]

COLOURS = ("red", "green", "blue", "white")
PATIENCE = 300


@pytest.fixture
def served(trained):
    served = load(trained.model)
    yield served
    served.engine.close()


@pytest.fixture(params=["mmca", "causal"])
def lively(request, tmp_path):
    """A model whose answers depend on the whole prompt, with either kind of cache."""
    from model.configuration import VisualChatConfig
    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor
    from tests.tiny_models import make_model

    folder = make_model(tmp_path, large_weights=True)
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    processor = VisualChatProcessor.from_pretrained(folder)
    model = VisualChatForConditionalGeneration.from_pretrained(folder, config=config)
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids
    return model, processor


def make_job(processor, messages, colours=COLOURS, timeout=PATIENCE, **sampling):
    """A job and the queue of its deltas."""
    encoded = processor.encode(messages)
    pixels = [processor.preprocess_image(Image.new("RGB", (40, 30), colours[index])) for index in encoded.image_indices]
    deltas = queue.Queue()
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return Job(encoded, pixels, hashes, SamplingParams(**sampling), time.monotonic() + timeout, deltas.put), deltas


def rest(deltas) -> tuple[str, str, str]:
    """The answer, why it ended, and the error."""
    text = ""
    while True:
        delta = deltas.get(timeout=PATIENCE)
        text += delta.text
        if delta.finish is not None:
            return text, delta.finish, delta.error


def ask(engine, processor, messages, **options) -> tuple[str, str, str]:
    job, deltas = make_job(processor, messages, **options)
    engine.submit(job)
    return rest(deltas)


def test_answers_in_a_batch_equal_those_of_a_single_chat(lively):
    model, processor = lively
    images = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    talks = [
        [("What?", [0])],
        [("Hello?", []), ("And?", [1, 2])],
        [("Which image?", [3, 0]), ("Two?", []), ("What?", [1])],
    ]
    expected = []
    for talk in talks:
        session = ChatSession(model, processor, cache=ImageCache(model))
        expected.append([session.ask(text, [images[n] for n in shown], 9 + len(text)) for text, shown in talk])
    engine = BatchingEngine(model, processor, EngineSettings(max_batch_size=3, max_prefill_tokens=60))
    try:
        answers_by_talk = {}

        def run_dialogue(copy: int, number: int) -> None:
            messages, answers = [], []
            for text, shown in talks[number]:
                messages.append(user(text, *shown))
                answer, finish, _ = ask(engine, processor, messages, max_new_tokens=9 + len(text))
                assert finish == LENGTH
                answers.append(answer)
                messages.append({"role": "assistant", "content": answers[-1]})
            answers_by_talk[copy, number] = answers

        threads = [
            threading.Thread(target=run_dialogue, args=(copy, n)) for copy in range(4) for n in range(len(talks))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        engine.close()
    assert answers_by_talk == {(copy, n): expected[n] for copy in range(4) for n in range(len(talks))}
    assert engine.rows > 1.5 * engine.steps, "most steps have several rows"
    assert engine.state()["images_computed"] == len(COLOURS), "each image is computed once"


def test_a_round_continues_from_the_cached_round_before(served):
    first = [user(COLOUR, 0)]
    answer = ask(served.engine, served.processor, first)[0]
    job, deltas = make_job(served.processor, [*first, {"role": "assistant", "content": answer}, user(COUNT)])
    served.engine.submit(job)
    assert rest(deltas)[1] == STOP and job.cached_tokens >= len(served.processor.encode(first))
    other, deltas = make_job(served.processor, first, colours=("blue",))
    served.engine.submit(other)
    assert rest(deltas)[0] == "It is blue." and answer == "It is red."
    assert other.cached_tokens <= list(other.encoded.modality).index(2), "another image is another conversation"
    # The conversation is cached shortly after its last delta was delivered.
    deadline = time.monotonic() + 60
    while len(served.engine._prefixes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(served.engine._prefixes) == 2, "a continued conversation replaces its earlier entry"


def test_caches_stay_within_their_memory(trained):
    served = load(trained.model, prefix_cache_bytes=40_000, image_cache_bytes=20_000)
    for number in range(12):
        assert ask(served.engine, served.processor, [user(f"{COLOUR} {number}", number % 4)])[1] in (STOP, LENGTH)
        state = served.engine.state()
        assert state["prefix_cache_bytes"] <= 40_000 and state["image_cache_bytes"] <= 20_000
    assert state["prefix_cache_bytes"] > 0
    until = time.monotonic() + PATIENCE
    while served.engine.state()["running_bytes"]:
        assert time.monotonic() < until, "the last job still has memory"
    served.engine.close()


def test_the_batch_stays_within_max_batch_tokens(trained):
    """Jobs that do not fit together run one after the other, and a job that is too large runs alone."""
    served = load(trained.model, max_batch_tokens=100)
    jobs = [make_job(served.processor, [user(COLOUR, n)], max_new_tokens=30) for n in range(3)]
    jobs.append(make_job(served.processor, [user("word " * 60)], max_new_tokens=3))
    for job, _ in jobs:
        served.engine.submit(job)
    assert [rest(deltas)[0] for _, deltas in jobs[:3]] == ["It is red.", "It is green.", "It is blue."]
    assert rest(jobs[3][1])[1] in (STOP, LENGTH)
    assert served.engine.rows == served.engine.steps
    served.engine.close()


def test_a_job_that_does_not_fit_yet_keeps_its_position(trained):
    """A later job does not overtake it, even if that one would fit."""
    served = load(trained.model, max_batch_tokens=300)
    started, hold = [], threading.Event()
    sizes = {"runs": 60, "large": 250, "small": 20}  # maximum tokens of the answer
    jobs = {name: make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=size) for name, size in sizes.items()}
    for name, (job, deltas) in jobs.items():

        def deliver(delta, name=name, deltas=deltas):
            started.append(name)
            deltas.put(delta)
            hold.wait(PATIENCE)

        job.on_delta = deliver
        served.engine.submit(job)
        while name == "runs" and not started:  # it is held at its first delta until the others are queued
            time.sleep(0.01)
    hold.set()
    for _, deltas in jobs.values():
        assert rest(deltas)[1] == STOP
    assert list(dict.fromkeys(started)) == ["runs", "large", "small"]
    served.engine.close()


def test_sampling_is_repeatable_by_seed(served):
    def draw(**sampling):
        return ask(served.engine, served.processor, [user(COUNT, 0)], max_new_tokens=12, temperature=3.0, **sampling)[0]

    assert draw(seed=1) == draw(seed=1)
    assert len({draw(seed=n) for n in range(6)}) > 1
    assert draw(seed=5, top_p=1e-6) == ask(served.engine, served.processor, [user(COUNT, 0)], max_new_tokens=12)[0]


def test_stop_sequences_end_an_answer_and_are_left_out(served):
    assert ask(served.engine, served.processor, [user(COLOUR, 0)], stop=("s r", "zzz")) == ("It i", STOP, "")
    assert ask(served.engine, served.processor, [user(COLOUR, 0)], stop=("red.x",)) == ("It is red.", STOP, "")
    assert ask(served.engine, served.processor, [user(COLOUR, 0)], max_new_tokens=2)[1] == LENGTH


def test_late_and_cancelled_jobs_end(served):
    assert ask(served.engine, served.processor, [user(COLOUR, 0)], timeout=-1) == ("", TIMEOUT, "")
    job, deltas = make_job(served.processor, [user(COLOUR, 0)])
    job.cancel()
    served.engine.submit(job)
    assert rest(deltas)[1] == CANCELLED
    stream, deltas = make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=4000, temperature=9.0, seed=0)
    served.engine.submit(stream)
    deltas.get(timeout=PATIENCE)
    stream.cancel()
    assert rest(deltas)[1] == CANCELLED
    assert ask(served.engine, served.processor, [user(COLOUR, 0)])[0] == "It is red."


def test_queued_jobs_time_out_and_are_cancelled_while_waiting(trained):
    served = load(trained.model, max_batch_size=1, max_queue_size=2)
    long, deltas = make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=900, temperature=9.0, seed=0)
    hook = served.engine.model.get_decoder().register_forward_pre_hook(lambda *args: time.sleep(0.02))
    served.engine.submit(long)
    deltas.get(timeout=PATIENCE)
    late, late_deltas = make_job(served.processor, [user(COLOUR, 0)], timeout=0.1)
    gone, gone_deltas = make_job(served.processor, [user(COLOUR, 0)])
    served.engine.submit(late)
    served.engine.submit(gone)
    gone.cancel()
    assert (rest(late_deltas)[1], rest(gone_deltas)[1]) == (TIMEOUT, CANCELLED)
    assert served.engine.state()["running"] == 1, "the long answer is still being generated"
    long.cancel()
    hook.remove()
    served.engine.close()


def test_a_prompt_that_fails_fails_alone(served):
    engine, processor = served.engine, served.processor
    bad, bad_deltas = make_job(processor, [user(COLOUR, 0)])
    bad.pixels = []  # the placeholder has no image
    jobs = [make_job(processor, [user(COLOUR, n)]) for n in range(3)]
    hold = threading.Event()
    holder, holder_deltas = make_job(processor, [user("Say red.")])
    holder.on_delta = lambda delta: (hold.wait(PATIENCE), holder_deltas.put(delta))
    engine.submit(holder)  # while it is held, the others come to wait together
    for job in (jobs[0][0], bad, jobs[1][0], jobs[2][0]):
        engine.submit(job)
    hold.set()
    assert [rest(deltas)[0] for _, deltas in jobs] == ["It is red.", "It is green.", "It is blue."]
    text, finish, error = rest(bad_deltas)
    assert (text, finish) == ("", ERROR) and "image placeholders" in error
    assert rest(holder_deltas)[1] == STOP and engine.alive


def test_a_failed_step_ends_only_its_jobs(served):
    engine = served.engine
    job, deltas = make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=4000, temperature=9.0, seed=0)

    def fail(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] == 1:
            raise torch.OutOfMemoryError("no memory left")

    hook = engine.model.get_decoder().register_forward_pre_hook(fail, with_kwargs=True)
    engine.submit(job)
    assert rest(deltas)[1] == ERROR
    hook.remove()
    assert ask(engine, served.processor, [user(COLOUR, 0)])[0] == "It is red."


def test_a_failing_callback_ends_only_its_job(served):
    job, _ = make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=900, temperature=9.0, seed=0)
    finishes = []

    def fail(delta):
        finishes.append(delta.finish)
        raise RuntimeError("the connection is gone")

    job.on_delta = fail
    served.engine.submit(job)
    assert ask(served.engine, served.processor, [user(COLOUR, 1)])[0] == "It is green."
    until = time.monotonic() + PATIENCE
    while served.engine.state()["running"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert finishes == [None, CANCELLED]


def test_a_sampling_error_ends_only_its_job(served):
    hold = threading.Event()
    holder, holder_deltas = make_job(served.processor, [user(COLOUR, 0)])
    holder.on_delta = lambda delta: (hold.wait(PATIENCE), holder_deltas.put(delta))
    served.engine.submit(holder)
    job, deltas = make_job(served.processor, [user(COLOUR, 1)], temperature=float("nan"))
    other, other_deltas = make_job(served.processor, [user(COLOUR, 2)])
    for one in (job, other):
        served.engine.submit(one)
    hold.set()
    text, finish, error = rest(deltas)
    assert (text, finish) == ("", ERROR) and error.startswith("sampling a token failed")
    assert [rest(deltas)[0] for deltas in (holder_deltas, other_deltas)] == ["It is red.", "It is blue."]


def test_a_prefill_stays_within_max_prefill_tokens(trained):
    prompts = ["A long question comes first. Say red, green, blue or white.", *(f"{n}? Say red." for n in range(3))]
    served = load(trained.model)
    longest = len(served.processor.encode([user(prompts[0])]))
    assert all(3 * len(served.processor.encode([user(text)])) <= 2 * longest for text in prompts[1:])
    served.engine.close()
    served = load(trained.model, max_prefill_tokens=2 * longest)
    shapes = []
    hook = served.engine.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    hold = threading.Event()
    holder, holder_deltas = make_job(served.processor, [user(COLOUR, 0)])
    holder.on_delta = lambda delta: (hold.wait(PATIENCE), holder_deltas.put(delta))
    served.engine.submit(holder)
    jobs = [make_job(served.processor, [user(text)], max_new_tokens=3) for text in prompts]
    for job, _ in jobs:
        served.engine.submit(job)
    hold.set()
    for _, deltas in [*jobs, (holder, holder_deltas)]:
        assert rest(deltas)[1] in (STOP, LENGTH)
    hook.remove()
    served.engine.close()
    together = [rows * width for rows, width in shapes if rows > 1 and width > 1]
    assert together and max(together) <= 2 * longest


def test_after_running_out_of_memory_caches_are_cleared_and_the_prefill_is_repeated(served):
    ask(served.engine, served.processor, [user(COLOUR, 1)])  # the first image also inspects the decoder
    calls = []

    def fail(module, args):
        calls.append(None)
        if len(calls) == 2:  # the first call is that of the image, the second that of the prompt
            raise torch.OutOfMemoryError("no memory left")

    hook = served.engine.model.get_decoder().register_forward_pre_hook(fail)
    before = served.engine.state()["images_computed"]
    assert ask(served.engine, served.processor, [user(COLOUR, 0)]) == ("It is red.", STOP, "")
    hook.remove()
    assert served.engine.state()["images_computed"] == before + 2, "the cached image was dropped"


def test_closing_ends_running_and_queued_jobs_with_an_error(trained):
    served = load(trained.model, max_batch_size=1)
    hold = threading.Event()
    jobs = [make_job(served.processor, [user(COLOUR, 0)], max_new_tokens=900, temperature=9.0, seed=0) for _ in "ab"]
    jobs[0][0].on_delta = lambda delta: (hold.wait(PATIENCE), jobs[0][1].put(delta))
    for job, _ in jobs:
        served.engine.submit(job)
    closing = threading.Thread(target=served.engine.close)
    closing.start()
    while not served.engine._closed:
        time.sleep(0.01)
    hold.set()
    closing.join(PATIENCE)
    assert not served.engine.alive
    for _, deltas in jobs:
        last = list(deltas.queue)[-1:]
        assert [(delta.finish, delta.error) for delta in last] == [(ERROR, "the server is shutting down")]


def test_a_full_queue_and_a_closed_engine(trained):
    served = load(trained.model, max_batch_size=1, max_queue_size=2)
    hold = threading.Event()
    jobs = [make_job(served.processor, [user(COLOUR, 0)]) for _ in range(4)]
    jobs[0][0].on_delta = lambda delta: (hold.wait(PATIENCE), jobs[0][1].put(delta))
    served.engine.submit(jobs[0][0])
    while served.engine.state()["waiting"]:
        time.sleep(0.01)
    served.engine.submit(jobs[1][0])
    served.engine.submit(jobs[2][0])
    with pytest.raises(QueueFullError):
        served.engine.submit(jobs[3][0])
    hold.set()
    assert [rest(deltas)[0] for _, deltas in jobs[:3]] == ["It is red."] * 3
    served.engine.close()
    with pytest.raises(EngineClosedError):
        served.engine.submit(jobs[3][0])

"""Which queries are read at once."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from spacy_bert_heads.serving.annotator import Query  # noqa: E402
from spacy_bert_heads.serving.batcher import Batcher  # noqa: E402
from spacy_bert_heads.serving.limits import Limits, Rejected  # noqa: E402

FOREVER = 1e6  # seconds: whoever waits so long hangs


class Pipeline:
    """Notes the batches that it is given; holds the first one back until it is opened."""

    def __init__(self, **limits):
        self.batches: list[list[str]] = []
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batcher = Batcher(self.annotate, Limits(**limits))

    def annotate(self, queries):
        self.entered.set()
        assert self.opened.wait(60)
        self.batches.append([query.text for query in queries])
        if any(query.text == "fails" for query in queries):
            raise RuntimeError
        return [{"text": query.text} for query in queries]

    async def ask(self, *texts):
        records = await self.batcher.submit([Query(text) for text in texts])
        return [record["text"] for record in records]

    def run(self, talk):
        """Run a coroutine function while the pipeline is served."""
        self.batcher.start()
        try:
            return asyncio.run(talk())
        finally:
            self.opened.set()
            self.batcher.close()


def test_the_cost_of_a_query():
    assert Query("a" * 40).cost == 10 + 2
    assert Query("a" * 40, questions=["b" * 8], categories={"c": "d" * 8}).cost == 34 + 6
    assert Query("\u6c49" * 4).cost == 3 + 2  # three bytes each


def test_those_that_wait_are_read_at_once():
    pipeline = Pipeline(max_wait=FOREVER)

    async def talk():
        first = asyncio.create_task(pipeline.ask("first"))
        await asyncio.to_thread(pipeline.entered.wait)
        others = [asyncio.create_task(pipeline.ask(f"{i}")) for i in range(4)]
        await asyncio.sleep(0)
        pipeline.opened.set()
        return [await task for task in (first, *others)]

    assert pipeline.run(talk) == [["first"], ["0"], ["1"], ["2"], ["3"]]
    assert pipeline.batches == [["first"], ["0", "1", "2", "3"]]


def test_a_batch_waits_for_as_many_as_the_last_one_had():
    pipeline = Pipeline(max_wait=FOREVER)
    pipeline.opened.set()

    async def talk():
        await pipeline.ask("alone")  # which waits for nobody
        await pipeline.ask("a", "b", "c")
        tasks = []
        for i in range(3):
            tasks.append(asyncio.create_task(pipeline.ask(f"{i}")))
            await asyncio.sleep(0.01)
        for task in tasks:
            await task

    pipeline.run(talk)
    assert pipeline.batches[0] == ["alone"]
    assert pipeline.batches[-1] == ["0", "1", "2"]


def test_it_does_not_wait_longer_than_it_may():
    pipeline = Pipeline(max_wait=0.001)
    pipeline.opened.set()

    async def talk():
        await pipeline.ask("a", "b", "c")
        return await pipeline.ask("alone")

    assert pipeline.run(talk) == ["alone"]


def test_a_budget_of_wordpieces():
    pipeline = Pipeline(batch_wordpieces=30, max_wait=FOREVER)
    pipeline.opened.set()
    long = "x" * 400  # more than the budget: alone

    async def talk():
        return await pipeline.ask("a" * 40, "b" * 40, long, "c" * 40, "d")

    pipeline.run(talk)
    assert pipeline.batches == [["a" * 40, "b" * 40], [long], ["c" * 40, "d"]]
    assert pipeline.batcher.queue_cost == 0


def test_nobody_works_for_those_who_have_gone():
    pipeline = Pipeline(timeout=0.05)

    async def talk():
        first = asyncio.create_task(pipeline.ask("first"))
        await asyncio.to_thread(pipeline.entered.wait)
        with pytest.raises(Rejected, match=r"within 0\.05 seconds"):
            await pipeline.ask("gone")
        with pytest.raises(Rejected) as info:
            await first
        assert info.value.status == 504
        pipeline.opened.set()

    pipeline.run(talk)
    assert pipeline.batches == [["first"]]


def test_the_thread_outlives_a_failure():
    pipeline = Pipeline()
    pipeline.opened.set()

    async def talk():
        with pytest.raises(Rejected) as info:
            await pipeline.ask("fails")
        assert info.value.status == 500
        return await pipeline.ask("works")

    assert pipeline.run(talk) == ["works"]


def test_a_stop_takes_nothing_new():
    pipeline = Pipeline()

    async def talk():
        task = asyncio.create_task(pipeline.ask("first", "second"))
        await asyncio.to_thread(pipeline.entered.wait)
        closing = asyncio.create_task(asyncio.to_thread(pipeline.batcher.close))
        while pipeline.batcher.is_ready:
            await asyncio.sleep(0)
        with pytest.raises(Rejected) as info:
            await pipeline.ask("late")
        assert info.value.status == 503
        pipeline.opened.set()
        await closing
        return await task

    assert pipeline.run(talk) == ["first", "second"]


def test_the_thread_begins_with_its_gpu():
    seen = []
    batcher = Batcher(list, Limits(), begin=lambda: seen.append(threading.current_thread().name))
    batcher.start()
    batcher.close()
    assert seen == ["pipeline"]

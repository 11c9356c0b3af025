"""Waiting ends when it is told to, whatever else happens at the same moment."""

import asyncio

import pytest

from libs.runtime.waiting import within


async def test_a_cancellation_that_comes_together_with_the_news_is_heeded():
    news = asyncio.Event()

    async def listen() -> None:
        while True:
            await within(60, news.wait())
            news.clear()

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    news.set()
    listening.cancel()

    done, _ = await asyncio.wait({listening}, timeout=1)

    assert done
    assert listening.cancelled()


async def test_what_takes_too_long_is_a_time_out_and_goes_no_further():
    went_on = asyncio.Event()

    async def slow() -> None:
        await asyncio.sleep(0.05)
        went_on.set()

    with pytest.raises(TimeoutError):
        await within(0.01, slow())

    await asyncio.sleep(0.1)
    assert not went_on.is_set()

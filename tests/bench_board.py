"""How quick the pages are to use, measured in a real browser: run by ``nox -s bench_board``, never by the tests.

Prints, for a leaderboard of 2,000 and of 10,000 rows, when the page is ready and how long a sort and a filter take,
with the processor as it is and slowed down four times, at 390 and 1440 pixels. "Ready" is the end of the load event's
task; sort and filter are from the click to the next painted frame.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "reports")]

from test_page_size import large  # noqa: E402

from archbench.reports.site import render  # noqa: E402
from browsing import Visit, chromium  # noqa: E402

REPEATS = 5
READY = "performance.getEntriesByType('navigation')[0].loadEventEnd"
ACTION = """(action) => new Promise((done) => {
  const start = performance.now();
  action === 'sort' ? document.querySelector('.sorter[data-key=memory]').click()
    : document.querySelector('.chip[data-facet]').click();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def measure(browser: Any, page: Path, throttle: int, width: int) -> Iterator[tuple[float, float, float]]:
    for _ in range(REPEATS):
        with Visit(browser, viewport={"width": width, "height": 844}) as visit:
            session = visit.context.new_cdp_session(visit.page)
            session.send("Emulation.setCPUThrottlingRate", {"rate": throttle})
            opened = visit.open(page)
            opened.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
            ready = opened.evaluate(READY)
            yield ready, opened.evaluate(ACTION, "sort"), opened.evaluate(ACTION, "filter")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        for commits in (1, 5):
            folder = Path(scratch) / str(commits)
            render(large(folder / "results", copies=commits), folder / "site")
            page = folder / "site" / "track" / "attention.html"
            text = page.read_bytes()
            rows = len((folder / "site" / "track" / "attention.csv").read_text().splitlines()) - 1
            print(f"{rows} rows: {len(text):,} bytes, {len(gzip.compress(text, 6)):,} gzipped")
            for throttle, width in ((1, 1440), (4, 390)):
                found = list(measure(browser, page, throttle, width))
                ready, sort, narrow = (statistics.median(column) for column in zip(*found, strict=True))
                times = f"ready {ready:.0f} ms, sort {sort:.0f} ms, filter {narrow:.0f} ms"
                print(f"  {throttle}x slower, {width} px: {times}")


if __name__ == "__main__":
    main()

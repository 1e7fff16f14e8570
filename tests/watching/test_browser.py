"""The page in headless Chromium: the charts change while metrics are written."""

import contextlib

import fake_runs
from chromium import needs_chromium, open_chromium
from fake_runs import run_server


@needs_chromium
def test_the_chart_follows_the_metrics(tmp_path):
    run = tmp_path / "run"
    fake_runs.write_run(run, steps=range(1, 3))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(run_server(run))
        browser = stack.enter_context(open_chromium(tmp_path / "profile"))
        browser.open(server.url)
        browser.wait_for("document.body.innerText.includes('after step 2 of 40')")
        assert browser.evaluate("document.getElementById('connection').hidden")
        before = browser.evaluate("document.querySelector('#charts svg').outerHTML")
        browser.evaluate("document.querySelector('#facts details').open = true")
        browser.evaluate("window.marker = 1")
        fake_runs.add_records(run, range(3, 9))
        browser.wait_for("document.body.innerText.includes('after step 8 of 40')")
        assert browser.evaluate("document.querySelector('#charts svg').outerHTML") != before
        assert browser.evaluate("document.querySelector('#charts .legend b').innerText") == "1"
        assert browser.evaluate("document.querySelector('#facts details').open")
        assert browser.evaluate("window.marker") == 1  # the page was not loaded again
        browser.open(server.url, width=400)
        browser.wait_for("document.body.innerText.includes('after step 8 of 40')")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 400
        server.page.close()
        server.shutdown()  # a closed server that still runs would use a whole core
        server.server_close()
        browser.wait_for("!document.getElementById('connection').hidden")

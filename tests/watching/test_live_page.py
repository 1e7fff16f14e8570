"""The thread that updates the page survives files that are damaged or forged."""

import pytest

from invnext_jax.watching.live_page import LivePage


class FailingView:
    """A view whose second update fails."""

    names = ("status",)

    def __init__(self, error):
        self._error, self._count = error, 0

    def render(self):
        self._count += 1
        if self._count == 2:
            raise self._error("forged")
        return {"status": f"update {self._count}"}

    def close(self):
        pass


@pytest.mark.parametrize(
    "error", [OverflowError, ZeroDivisionError, RecursionError, MemoryError, AttributeError]
)
def test_an_error_of_a_forged_file_does_not_end_the_updates(error):
    page, version, problems = LivePage(FailingView(error), seconds=0.001), 0, []
    try:
        with page.add_viewer():
            for _ in range(3):
                version, sections = page.wait(version, timeout=10)
                problems.append(sections.get("problem", ""))
                if "update 3" in sections.get("status", ""):
                    break
        assert "update 3" in page.sections["status"]
        assert f"{error.__name__}: forged" in "".join(problems)
    finally:
        page.close()

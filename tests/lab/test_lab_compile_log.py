"""The compile log in Chromium: opened on request, it says why something was slow or not compiled.

Set LAB_TEST_SCREENSHOTS to a folder to keep pictures.
"""

from __future__ import annotations

import lab_journals as journals
import pytest
from lab_browser import (
    MARKS,
    expect,
    go_on,
    new_page,
    open_page,
    shoot,
    tell,
    too_wide,
    verdict,
)

pytestmark = MARKS


UP = journals.hub_until("lab")
COUNTS = {"graphs": 3, "frames": 4, "frames_ok": 3, "graph_breaks": 1, "fx_hit": 0, "fx_miss": 4}
BREAK = (
    "Failed to trace builtin operator\n  Explanation: Dynamo does not know how to trace builtin "
    "operator `print`.\n  Hint: Avoid calling builtin `print`."
)
LOGGED = {
    "first": COUNTS,
    "second": {**COUNTS, "fx_hit": 3, "fx_miss": 1},
    "reasons": [BREAK],
    "recompiles": 2,
    "lines": ["Recompiling function forward in train.py:7", "    - 0/0: size mismatch",
              "TOKEN=0123456789abcdef0123456789abcdef"],
}  # fmt: skip
FAILED_LOG = {
    "error": "InductorError: CppCompileError: C++ compile error\n\nCommand:\ng++ -O3 main.cpp\n\n"
    "Output:\nmain.cpp:1:10: fatal error: Python.h: No such file or directory\n" + journals.BAD,
    "recompiles": 0,
    "lines": [],
}


def logged() -> journals.Story:
    """A warm-up of which one network is split, one fails and one is under way."""
    cnn, mlp, gpt = journals.TARGETS
    plan = {"phase": "plan", "targets": journals.TARGETS, "device": "cuda:0", "device_name": "H100"}
    counted = {"graphs": 1, "frames": 1, "frames_ok": 1, "fx_hit": 0, "fx_miss": 1}
    compiled = journals.check(
        "compile",
        sentence="torch.compile really compiles.",
        facts={**counted, "graph_breaks": [], "reasons": []},
    )
    return [
        *UP,
        *journals.checks(),
        (3.0, *compiled),
        (3.2, "warmup", plan),
        (9.0, "warmup", {"phase": "done", **cnn, "cold_s": 8.04, "warm_s": 1.1, "from_cache": False,
                         "message": "", "log": LOGGED}),
        (12.0, "warmup", {"phase": "failed", **mlp, "message": "This image lacks Python's header "
                          "files, which torch.compile needs.", "log": FAILED_LOG}),
        (12.1, "warmup", {"phase": "running", **gpt}),
    ]  # fmt: skip


@pytest.mark.parametrize("look", ["1280 light", "390 dark"])
async def test_the_compile_log_opens_on_request_and_says_why(lab, browser, look):
    width, theme = look.split()
    tell(lab, logged())
    async for page in new_page(browser, int(width), theme):
        await open_page(lab, page)
        button = page.get_by_role("button", name="Compile log")
        card = page.get_by_role("region", name="Compile log")
        await expect(verdict(page)).to_have_text("Your GPU is ready.")
        await expect(card).to_be_hidden()
        await expect(button).to_have_attribute("aria-expanded", "false")
        await button.click()
        await expect(card.get_by_role("heading", name="Compile log")).to_be_focused()
        # What failed is open; what worked is folded.
        await expect(card.get_by_text("fatal error: Python.h")).to_be_visible()
        await expect(card.get_by_text("cache: 0 hits, 4 misses")).to_be_hidden()
        await card.get_by_text("cnn: compiled in 8.0 s, 1 graph break").click()
        for words in (
            "first step 8.0 s, the same again from the cache 1.1 s",
            "3 compiled graphs, 1 graph break",
            "1 function of 4 ran uncompiled",
            "cache: 0 hits, 4 misses",
            "1 part had to be compiled anew",
            "compiled anew for other inputs: 2",
            "Hint: Avoid calling builtin",
            "0/0: size mismatch",
        ):
            await expect(card.get_by_text(words)).to_be_visible()
        await expect(card.get_by_text("The check: torch.compile really compiles.")).to_be_visible()
        await expect(card.get_by_text("gpt: compiling…")).to_be_visible()
        await expect(card.get_by_text("set_logs(graph_breaks=True")).to_be_visible()
        assert "0123456789abcdef" not in await card.inner_text()
        assert await page.evaluate("window.hacked") is None
        assert await too_wide(page) == []
        await shoot(page, f"compile-log-{width}-{theme}")
        await button.click()
        await expect(card).to_be_hidden()


async def test_the_compile_log_is_copied_as_text_and_follows_the_news(lab, page):
    start = tell(lab, logged())
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_page(lab, page)
    await page.get_by_role("button", name="Compile log").click()
    card = page.get_by_role("region", name="Compile log")
    await card.get_by_role("button", name="Copy log").click()
    await expect(card.get_by_text("Copied.")).to_be_visible()
    text = await page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("Compile log\n\nThe check: torch.compile really compiles.\n")
    assert "cnn: compiled in 8.0 s, 1 graph break\n  first step 8.0 s" in text
    assert "fatal error: Python.h" in text
    assert "0123456789abcdef" not in text
    ended = {"phase": "done", **journals.TARGETS[2], "cold_s": 1.4, "warm_s": 1.3,
             "from_cache": True, "message": ""}  # fmt: skip
    go_on(lab, start, [(15.0, "warmup", ended)])
    await expect(card.get_by_text("gpt: from the warm cache")).to_be_visible()


async def test_without_the_clipboard_the_log_is_in_a_box_to_copy_from(lab, page):
    tell(lab, logged())
    await open_page(lab, page)
    await page.get_by_role("button", name="Compile log").click()
    refuse = "navigator.clipboard.writeText = () => Promise.reject(new Error('no'))"
    await page.evaluate(f"() => {{ {refuse} }}")
    await page.get_by_role("button", name="Copy log").click()
    box = page.get_by_role("textbox", name="Compile log as text")
    await expect(box).to_be_focused()
    assert "cnn: compiled in 8.0 s" in await box.input_value()
    await page.wait_for_timeout(2500)  # the page is drawn anew every second
    await expect(box).to_be_focused()
    selected = "document.activeElement.selectionEnd - document.activeElement.selectionStart"
    assert await page.evaluate(selected) == len(await box.input_value())
    await shoot(page, "compile-log-to-copy")
    await page.get_by_role("button", name="Copy log").click()
    await expect(box).to_have_count(1)
    for _ in range(2):
        await page.get_by_role("button", name="Compile log").click()
    await expect(box).to_have_count(0)


async def test_before_anything_was_compiled_the_log_says_when_it_will_be(lab, page):
    tell(lab, journals.hub_until("container"))
    await open_page(lab, page)
    await page.get_by_role("button", name="Compile log").click()
    card = page.get_by_role("region", name="Compile log")
    await expect(card.get_by_text("It begins when the checks are done.")).to_be_visible()


async def test_a_hostile_log_is_text_and_odd_numbers_are_unknown(lab, page):
    odd = {"first": {"graphs": "x", "fx_hit": -1}, "second": 7, "reasons": [journals.BAD, {}],
           "lines": journals.BAD, "error": [1], "recompiles": 1e300}  # fmt: skip
    target = {"id": journals.BAD, "model": journals.BAD, "mode": "default"}
    tell(lab, [*UP, (4.0, "warmup", {"phase": "failed", **target, "log": odd})])
    await open_page(lab, page)
    await page.get_by_role("button", name="Compile log").click()
    card = page.get_by_role("region", name="Compile log")
    await expect(card.get_by_text("Why it was split or not compiled:")).to_be_visible()
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#lab-server :is(img, script, b, style)").count() == 0

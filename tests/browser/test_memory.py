"""Which notebook holds the memory: real kernels in a real container, the page, and its button."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import log_in, picture
from tests.kernel_client import Kernel, Server
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow]

ENTRY = Path(__file__).parents[2] / "share" / "images" / "launcher" / "static" / "entry.js"
# Random, so that it is really there; and a process of the notebook's own, which is of its tree.
HOLD = "import os, subprocess\nheld = os.urandom(2**30)\nchild = subprocess.Popen(['sleep', '600'])"
# It outlives its kernel: in a session of its own, and the kernel gets no chance to end it.
LEAVE = (
    "import os, subprocess, sys\n"
    "program = 'import os, time; held = os.urandom(2**27); time.sleep(600)'\n"
    "subprocess.Popen([sys.executable, '-c', program], start_new_session=True)\n"
    "print(os.getpid())"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("memory")) as running:
        yield running


def open_notebooks(lab: Lab, user: str, cells: dict[str, str], server: str = "") -> dict[str, str]:
    """Open notebooks as JupyterLab does, run a cell in each; what the cells print by path."""

    async def run() -> dict[str, str]:
        printed = {}
        async with Server(lab.url, user, lab.user_token(user), server) as there:
            for path, code in cells.items():
                body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": ""}}
                said = json.loads((await there.ask("POST", "api/sessions", body)).body)
                with closing(Kernel(there, said["kernel"]["id"], time.monotonic())) as kernel:
                    await kernel.connect()
                    ran = await kernel.execute(code)
                assert ran.status == "ok", ran.error
                printed[path] = ran.stdout.strip()
        return printed

    # Playwright has a loop in this thread.
    with ThreadPoolExecutor(1) as other:
        return other.submit(lambda: asyncio.run(run())).result()


def memory_of(lab: Lab, user: str, server: str = "") -> dict[str, Any]:
    """What the service answers the tests' own token, which is an admin's."""
    place = "/".join(filter(None, (user, server)))
    answer = lab.session.get(f"{lab.url}/services/lab/api/servers/{place}/memory", timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def container_mib(lab: Lab, user: str) -> float:
    """Memory of the container as its engine counts it, without what files left in the cache."""
    stats = lab.container(user).stats(stream=False)["memory_stats"]
    return float(stats["usage"] - stats["stats"].get("inactive_file", 0)) / 2**20


def test_the_page_names_the_notebook_and_its_button_gives_the_memory_back(
    lab: Lab, page: Page
) -> None:
    width = page.viewport_size["width"]
    user = f"ana{width}"
    troubles: list[str] = []
    page.context.on("weberror", lambda error: troubles.append(str(error.error)))
    lab.start_server(user, {"share": "none"})
    open_notebooks(lab, user, {"cv-03.ipynb": HOLD, "nlp-01.ipynb": "1 + 1"})

    log_in(page, lab, user, f"/user/{user}/lab?reset")
    entry = page.get_by_role("button", name="My GPU")
    expect(entry).to_be_visible(timeout=60_000)
    picture(page, "memory-1-launcher")
    with page.context.expect_page() as opened:
        entry.click()
    mine = opened.value
    mine.wait_for_url(re.compile(rf"/services/lab/servers/{user}/?#memory"))

    card = mine.get_by_role("region", name="Memory")
    said = card.get_by_text(re.compile(r"cv-03\.ipynb holds 1(\.\d)? GiB of your server's memory"))
    expect(said).to_be_visible(timeout=40_000)
    expect(card.get_by_role("listitem").filter(has_text="nlp-01.ipynb")).to_contain_text("MiB")
    assert mine.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    picture(mine, "memory-2-held")
    card.get_by_role("button", name="Shut down cv-03.ipynb").click()
    question = mine.get_by_role("dialog", name="Shut down cv-03.ipynb?")
    expect(question).to_contain_text("variables are lost")
    expect(question).to_contain_text("The notebook itself is kept")
    picture(mine, "memory-3-question")
    question.get_by_role("button", name="Keep it").click()
    expect(question).to_have_count(0)
    assert len(memory_of(lab, user)["kernels"]) == 2, "nothing was shut down"

    card.get_by_role("button", name="Shut down cv-03.ipynb").click()
    before_mib = container_mib(lab, user)
    question.get_by_role("button", name="Shut down", exact=True).click()
    expect(card.get_by_text(re.compile(r"nlp-01\.ipynb holds \d+ MiB"))).to_be_visible()
    expect(card.get_by_text("cv-03.ipynb")).to_have_count(0)
    # A standby kernel may come meanwhile, with a few hundred MiB.
    assert before_mib - container_mib(lab, user) > 600, "the memory is not free"
    card.get_by_role("button", name="Shut down nlp-01.ipynb").click()
    mine.get_by_role("dialog").get_by_role("button", name="Shut down", exact=True).click()
    expect(card.get_by_text("No notebook is open.")).to_be_visible()
    picture(mine, "memory-4-empty")
    assert troubles == []
    lab.stop_server(user)


def test_what_is_left_of_a_killed_kernel_is_named_by_its_notebook(lab: Lab) -> None:
    lab.start_server("bo", {"share": "none"}, "thesis")
    printed = open_notebooks(lab, "bo", {"week-1.ipynb": LEAVE}, "thesis")
    lab.exec("bo", "kill", "-9", printed["week-1.ipynb"], server="thesis")

    def leftovers() -> list[dict[str, Any]]:
        others = memory_of(lab, "bo", "thesis")["others"]
        return [one for one in others if one["kind"] == "leftover"]

    def is_there() -> bool:
        return any(one["memory_mib"] >= 128 for one in leftovers())

    lab.wait_until(is_there, 30, "nothing is left over")
    (left,) = leftovers()
    assert left["path"] == "week-1.ipynb"
    assert left["memory_mib"] < 400
    assert left["notebook"].startswith("python3")
    lab.exec("bo", "kill", str(left["pid"]), server="thesis")
    lab.wait_until(lambda: not leftovers(), 30, "the page's own remedy did not help")
    lab.stop_server("bo", "thesis")


def test_an_admin_shuts_a_kernel_down_and_the_log_says_so(lab: Lab) -> None:
    lab.start_server("eve", {"share": "none"})
    open_notebooks(lab, "eve", {"cv-03.ipynb": "1 + 1"})
    (kernel,) = memory_of(lab, "eve")["kernels"]
    api = f"{lab.url}/services/lab/api"
    answer = lab.session.delete(f"{api}/servers/eve/kernels/{kernel['id']}", timeout=60)
    assert answer.status_code == 200, answer.text
    assert memory_of(lab, "eve")["kernels"] == []
    (line,) = lab.session.get(f"{api}/log?limit=1", timeout=20).json()["rows"]
    assert line["sentence"] == "Asked to shut down the kernel of cv-03.ipynb in the server eve."
    assert (line["by"], line["can_undo"]) == ("tests", False)
    # Whoever looks does not use: the culler must see an idle server idle.
    seen = lab.exec("eve", "python3", "-c", _API_ACTIVITY)
    memory_of(lab, "eve")
    time.sleep(6)  # the answer is kept for 5 s
    memory_of(lab, "eve")
    assert lab.exec("eve", "python3", "-c", _API_ACTIVITY) == seen
    lab.stop_server("eve")


_API_ACTIVITY = """
import json, os, urllib.request
url = f"http://127.0.0.1:8888{os.environ['JUPYTERHUB_SERVICE_PREFIX']}api/status?no_track_activity=1"
head = {"Authorization": "token " + os.environ["JUPYTERHUB_API_TOKEN"]}
print(json.load(urllib.request.urlopen(urllib.request.Request(url, headers=head)))["last_activity"])
"""

# What JupyterLab gives an extension: its shared modules, and an application.
_LAB = """async ([config, entry]) => {
  document.body.innerHTML = '<script id="jupyter-config-data" type="application/json"></script>';
  document.getElementById("jupyter-config-data").textContent = JSON.stringify(config);
  const module = (value) => ({ "1.0.0": { get: async () => () => value, loaded: 1 } });
  (0, eval)(entry);
  const container = window._JUPYTERLAB["@pytorch-spawner/my-gpu"];
  await container.init({
    "@jupyterlab/launcher": module({ ILauncher: "launcher" }),
    "@jupyterlab/ui-components": module({ LabIcon: class {} }),
  });
  const [plugin] = (await container.get("./extension"))().default;
  const added = [], opened = [];
  window.open = (...words) => opened.push(words);
  const addCommand = (name, command) => command.execute();
  plugin.activate({ commands: { addCommand } }, { add: (item) => added.push(item) });
  return [plugin.requires, added.length, opened];
}"""


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ({"hubPrefix": "/hub/", "hubUser": "ana"}, "/services/lab/servers/ana/#memory"),
        (
            {"hubPrefix": "/class/hub/", "hubUser": "ana", "hubServerName": "thesis"},
            "/class/services/lab/servers/ana/thesis#memory",
        ),
        (
            {"hubPrefix": "/hub/", "hubUser": "a/b<'&\">", "hubServerName": "ü 1"},
            "/services/lab/servers/a%2Fb%3C'%26%22%3E/%C3%BC%201#memory",
        ),
        ({"baseUrl": "/"}, None),
    ],
    ids=["at the root", "below a prefix, a named server", "odd names", "no hub"],
)
def test_the_launchers_entry_finds_the_page_of_its_server(
    page: Page, config: dict[str, str], url: str | None
) -> None:
    requires, count, opened = page.evaluate(_LAB, [config, ENTRY.read_text()])
    assert requires == ["launcher"]
    assert count == (0 if url is None else 1)
    assert opened == ([] if url is None else [[url, "_blank", "noopener"]])

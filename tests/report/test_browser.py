"""The pages in headless Chromium: axe-core finds nothing, nothing is fetched, a phone needs no sideways scrolling.

Chromium is Debian's package `chromium`; axe-core comes from the npm registry. Without them the tests are skipped.
"""

import html
import json
import re
import shutil
import subprocess
import tarfile

import pytest
from report_facts import make_facts, with_evidence

from lorry.report.page import write_report
from lorry.report.side_by_side import comparison_page

pytestmark = pytest.mark.slow

EVIL = "<script>document.title = 'stolen'</script><img src=x onerror=\"document.title = 'stolen'\">"
# The widest content of the page in a frame as wide as a phone, and what axe and the browser have to complain of.
CHECK = """
addEventListener("load", async () => {
  const found = await axe.run();
  document.body.textContent = JSON.stringify({
    violations: found.violations.map(rule => `${rule.id}: ${rule.nodes[0].html}`),
    passes: found.passes.map(rule => rule.id),
    blocked, title: document.title, dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
});
"""
WATCH = """
const blocked = [];
addEventListener("securitypolicyviolation", event => blocked.push(event.blockedURI + " " + event.violatedDirective));
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
FRAME = """<iframe src="page.html" width="375" height="800"></iframe><script>addEventListener("load", () => {
  const inside = frames[0].document;
  const wide = [...inside.querySelectorAll("main *")].filter(item => item.getBoundingClientRect().right > 375.5);
  document.body.textContent = JSON.stringify(wide.map(item => item.outerHTML.slice(0, 80)));
})</script>"""


@pytest.fixture(scope="module")
def chromium():
    """Return `open(page, *flags) -> dict`: what the page has written into its body, as JSON."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")

    def run(*flags):
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", *flags]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout

    def opened(page, *flags):
        dom = run("--virtual-time-budget=60000", "--dump-dom", *flags, page.as_uri())
        return json.loads(html.unescape(re.search(r"<body[^>]*>(.*)</body>", dom, re.DOTALL)[1]))

    opened.run = run
    return opened


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """Return the source of axe-core."""
    if shutil.which("npm") is None:
        pytest.skip("no npm, which fetches axe-core")
    folder = tmp_path_factory.mktemp("axe")
    fetched = subprocess.run(
        ["npm", "pack", "--silent", "axe-core@4"], cwd=folder, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch axe-core: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as package:
        return package.extractfile("package/axe.min.js").read().decode()


def write_page(folder, kind):
    page = folder / "page.html"
    facts = with_evidence(EVIL)
    if kind == "report":
        config = {**facts.config, "pretrained_model": EVIL}
        write_report(page, with_evidence(EVIL, config=config, command=EVIL))
    else:
        page.write_text(comparison_page({EVIL: facts, "other": make_facts()}), "utf-8")
    return page


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_fetched(tmp_path, chromium, axe, kind, scheme):
    page = write_page(tmp_path, kind)
    text = page.read_text("utf-8")
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><script>{WATCH}{axe}{CHECK}</script>'
    page.write_text(text.replace("<head>", f"<head>{head}", 1), "utf-8")
    found = chromium(page, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    assert found["dark"] == (scheme == "dark")
    assert found["violations"] == []
    assert {"color-contrast", "svg-img-alt"} <= set(found["passes"])  # it has looked
    assert found["blocked"] == []
    assert found["title"] != "stolen"


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_phone_shows_the_whole_width(tmp_path, chromium, kind):
    write_page(tmp_path, kind)
    (tmp_path / "phone.html").write_text(FRAME, "utf-8")
    assert chromium(tmp_path / "phone.html") == []


def test_the_page_prints(tmp_path, chromium):
    page = write_page(tmp_path, "report")
    chromium.run(f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 3 <= pages <= 12

#!/usr/bin/env python3
"""page.py: brimd's web page in a headless Chromium, as a user would see it.

usage: page.py FAKEHOST [SHOTS]    SHOTS: a directory that screenshots are put into

Speaks the browser's own protocol over its pipe (descriptors 3 and 4), so that nothing but Python
and Chromium is needed.  One line a test; the last one counts: `N passed, N failed, N skipped`.
"""
import base64
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

WAIT_S = 30

# Every visible text's contrast with what is behind it, worst first; what is below 4.5 is too faint.
CONTRAST = """(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const lum = c => [0, 1, 2].map(i => { const v = c[i] / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; })
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255]; };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.getClientRects().length || e.closest('script,style,button:disabled')) continue;
    const a = lum(parse(getComputedStyle(e).color)), b = lum(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(ratio.toFixed(2) + ' ' + walk.currentNode.data.trim().slice(0, 40));
  }
  return found.sort();
})()"""


# What of a section reaches beyond its padding.
STICKS_OUT = """[...document.querySelectorAll('section')].flatMap(s => {
  const edge = s.getBoundingClientRect().right - parseFloat(getComputedStyle(s).paddingRight) + 1;
  return [...s.querySelectorAll('p, td, dd, li, span, button, input, select, .stack')]
    .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > edge)
    .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 30));
})"""


class Browser:
    """Chromium on a pipe, with one page at a time."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp()
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "chromium", program, "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
             "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={self.profile}",
             "about:blank"],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=dict(os.environ, LANG="C.UTF-8", TZ="UTC"), start_new_session=True)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.number, self.session, self.complaints = b"", 0, None, []

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def read(self):
        end = time.monotonic() + WAIT_S
        while b"\0" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.inp], [], [], left)[0]:
                raise TimeoutError("the browser says nothing")
            piece = os.read(self.inp, 1 << 20)
            if not piece:
                raise EOFError("the browser ended")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def note(self, message):
        what, p = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.complaints.append(p["exceptionDetails"].get("exception", {}).get("description", str(p)))
        elif what == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.complaints.append(p["entry"]["text"] + " " + p["entry"].get("url", ""))

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.note(answer)

    def open(self, url, width=1280, height=900, dark=False):
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.complaints = []
        for domain in ("Runtime", "Log", "Page"):
            self.call(domain + ".enable")
        self.size(width, height)
        self.dark(dark)
        self.call("Page.navigate", url=url)

    def size(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)

    def dark(self, dark):
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def js(self, text):
        answer = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "?"))
        return answer["result"].get("value")

    def wait(self, text, why):
        end = time.monotonic() + WAIT_S
        # Before the page is there its elements are not either.
        while not self.js("(() => { try { return " + text + "; } catch (error) { return false; } })()"):
            if time.monotonic() > end:
                raise AssertionError(f"{why}: waited in vain for {text}; the browser said {self.complaints}")
            time.sleep(0.05)

    def key(self, name, code):
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def shot(self, path):
        height = self.js("document.documentElement.scrollHeight")
        width = self.js("innerWidth")
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                         clip={"x": 0, "y": 0, "width": width, "height": min(height, 4000), "scale": 1})["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))


class Host:
    """fakehost, on a port with a token."""

    def __init__(self, program, *options):
        self.token = secrets.token_hex(24)
        fd, self.file = tempfile.mkstemp()
        os.write(fd, self.token.encode() + b"\n")
        os.close(fd)
        self.process = subprocess.Popen([program, "--tcp", "0", "--token", self.file, *options],
                                        stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().split()[1]}/"

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.process.terminate()
        self.process.communicate()
        os.unlink(self.file)

    def page(self):
        return f"{self.url}#token={self.token}"


def check(good, why):
    if not good:
        raise AssertionError(why)


def ready(b):
    b.wait("!document.getElementById('all').hidden && document.querySelectorAll('#vms tr.vm:not([hidden])').length > 0",
           "the page shows no VM")


def with_history(b):
    b.wait("document.getElementById('c-used').getAttribute('d').length > 1000", "the page shows no history")


def same_as_api(b, h):
    """What is shown is what the interface says."""
    api = b.js("get('v1/snapshot').then(s => ({name: s.host.name, state: s.host.state, n: s.vms.length}))")
    check(b.js("document.querySelector('h1').textContent") == api["name"], "the host's name is not shown")
    check(b.js("document.getElementById('state').textContent") == api["state"], "the host's state is not shown")
    check(b.js("document.querySelectorAll('#vms tr.vm:not([hidden])').length") == api["n"], "not all VMs are shown")


def page_with_token_shows_host(b, host, shots):
    with Host(host, "--still") as h:
        b.open(h.page())
        ready(b)
        with_history(b)
        same_as_api(b, h)
        check("8 VMs were promised 192\u00a0GiB on a host that has 128\u00a0GiB: 1.5 times" in
              b.js("document.getElementById('sentence').textContent"), "the sentence is wrong")
        check(b.js("location.hash") == "", "the token stays in the address")
        widths = b.js("[...document.querySelectorAll('.stack')].map(s => [...s.children].reduce((n, e) => n + parseFloat(e.style.width), 0))")
        check(all(w <= 100.1 for w in widths) and all(w > 99.8 for w in widths[2:10]), f"bars do not add up: {widths}")
        check(abs(widths[0] - 100) < 0.1, f"what was promised is not all shown: {widths[0]}")
        check(not b.complaints, f"the browser complains: {b.complaints}")
        for dark in (False, True):
            b.dark(dark)
            check(b.js(CONTRAST) == [], f"faint text, dark {dark}: {b.js(CONTRAST)}")
            b.shot(f"{shots}/wide-{'dark' if dark else 'light'}.png")


def page_without_token_asks_for_it(b, host, shots):
    with Host(host) as h:
        b.open(h.url)
        b.wait("!document.getElementById('login').hidden", "the page does not ask for the token")
        check(b.js("document.getElementById('all').hidden"), "something is shown without a token")
        b.shot(f"{shots}/login.png")
        b.js("document.getElementById('token').focus()")
        b.call("Input.insertText", text="x" * 40)
        b.key("Enter", 13)
        b.wait("document.getElementById('trouble').textContent.includes('not the host')", "a wrong token is not told")
        b.js("document.getElementById('token').select()")
        b.call("Input.insertText", text=h.token)
        b.key("Enter", 13)
        ready(b)
        b.wait("document.getElementById('trouble').hidden && document.getElementById('login').hidden", "trouble stays")


def page_hostile_names_stay_text(b, host, shots):
    with Host(host, "--hostile") as h:
        b.open(h.page())
        b.js("window.hurt = () => { window.hurted = true; }")
        ready(b)
        with_history(b)
        names = b.js("[...document.querySelectorAll('#vms .name button')].map(e => e.textContent)")
        check("<img src=x onerror=hurt()>" in names, f"a name is not shown as it is: {names}")
        b.js("document.querySelectorAll('#vms .name button').forEach(e => e.click())")
        check(b.js("document.querySelectorAll('main img, main script, td b').length") == 0, "a name became HTML")
        check(not b.js("window.hurted"), "a name's script ran")
        check(b.js("document.querySelector('h1').textContent") == "<b>host</b>", "the host's name is not text")
        # And if one did become HTML, the policy would stop it.
        b.js("const s = document.createElement('script'); s.textContent = 'hurt()'; document.body.append(s)")
        check(not b.js("window.hurted"), "a foreign script runs: the policy does not hold")
        b.size(390, 800)
        check(b.js("document.documentElement.scrollWidth <= innerWidth"), "long names make the page wide")
        b.shot(f"{shots}/hostile-narrow.png")


def page_thousand_vms_paged_sorted_found(b, host, shots):
    with Host(host, "--vms", "1000") as h:
        b.open(h.page())
        ready(b)
        shown = "document.querySelectorAll('#vms tr.vm:not([hidden])').length"
        first = "document.querySelector('#vms tr.vm .name button').textContent"
        check(b.js(shown) == 25, "not 25 rows")
        check(b.js("document.getElementById('page').textContent") == "Page 1 of 40", "not 40 pages")
        b.js("document.getElementById('after').click()")
        check(b.js("document.getElementById('page').textContent") == "Page 2 of 40", "no second page")
        b.js("document.querySelector('#heads th button').click()")
        check(b.js(first) == "build-1" and b.js("document.querySelector('#heads th').ariaSort") == "ascending", "not sorted by name")
        b.js("document.getElementById('filter').focus()")
        b.call("Input.insertText", text="db-77")
        check(b.js(shown) == 1 and b.js(first) == "db-77", "the filter does not find db-77")
        b.js("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input'))")
        took = b.js("(() => { const t = performance.now(); for (let i = 0; i < 20; i++) show(now); return (performance.now() - t) / 20; })()")
        print(f"      showing 1000 VMs takes the browser {took:.1f} ms")
        check(took < 1000, f"showing 1000 VMs takes {took:.0f} ms")
        with_history(b)
        b.shot(f"{shots}/thousand.png")


def page_phone_width_fits(b, host, shots):
    with Host(host, "--still") as h:
        b.open(h.page(), width=360, height=740)
        ready(b)
        with_history(b)
        b.js("document.querySelector('#vms .name button').click()")
        for dark in (False, True):
            b.dark(dark)
            check(b.js("document.documentElement.scrollWidth <= innerWidth"), "it must be scrolled sideways")
            check(b.js(STICKS_OUT) == [], f"sticks out of its box: {b.js(STICKS_OUT)}")
            check(b.js(CONTRAST) == [], f"faint text, dark {dark}: {b.js(CONTRAST)}")
            b.shot(f"{shots}/narrow-{'dark' if dark else 'light'}.png")


def page_keyboard_and_names_suffice(b, host, shots):
    with Host(host) as h:
        b.open(h.page())
        ready(b)
        with_history(b)
        b.call("Accessibility.enable")
        nodes = b.call("Accessibility.getFullAXTree")["nodes"]
        wanted = ("button", "searchbox", "textbox", "combobox", "slider", "image", "table", "navigation")
        found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes
                 if not n.get("ignored") and n.get("role", {}).get("value") in wanted]
        nameless = [f for f in found if not f[1] and f[0] not in ("table",)]
        check(len(found) > 15 and not nameless, f"without a name: {nameless}")
        b.js("document.getElementById('direction').focus()")
        for _ in range(len(b.js("[...document.querySelectorAll('#heads button')].map(e => 1)")) + 1):
            b.key("Tab", 9)
        check(b.js("document.activeElement.closest('td.name') !== null"), "Tab does not reach the first VM")
        name = b.js("document.activeElement.textContent")
        b.key("Enter", 13)
        check(b.js("document.activeElement.getAttribute('aria-expanded')") == "true", "Enter does not open a VM")
        check(b.js("document.getElementById(document.activeElement.getAttribute('aria-controls')).innerText.includes('Reservation')"), "nothing opened")
        updated = b.js("document.getElementById('updated').textContent")
        b.wait(f"document.getElementById('updated').textContent !== {json.dumps(updated)}", "the page is not live")
        check(b.js("document.activeElement.closest('td.name') !== null"), "an update takes the focus away")
        check(bool(name), "a VM without a name")
        b.js("document.getElementById('moment').focus()")
        text = b.js("document.getElementById('moment-text').textContent")
        b.key("Home", 36)
        check(b.js("document.getElementById('moment-text').textContent") != text, "the history cannot be read by keys")
        check("in use of" in b.js("document.getElementById('moment').getAttribute('aria-valuetext')"), "the history has no words")


def page_host_gone_says_so(b, host, shots):
    with Host(host) as h:
        b.open(h.page())
        ready(b)
    b.wait("!document.getElementById('trouble').hidden", "nothing says that the host is gone")
    check("does not answer" in b.js("document.getElementById('trouble').textContent"), "the wrong trouble")
    check(b.js("document.querySelectorAll('#vms tr.vm').length") == 8, "the last numbers are gone")


def main():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    host = sys.argv[1]
    shots = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()
    tests = [f for name, f in globals().items() if name.startswith("page_") and callable(f)]
    if not program:
        print(f"skipped: the web page: no chromium here (tests/api/deps installs it)\n0 passed, 0 failed, {len(tests)} skipped")
        return 0
    os.makedirs(shots, exist_ok=True)
    failed = 0
    b = Browser(program)
    try:
        for test in tests:
            try:
                test(b, host, shots)
                print(f"ok: {test.__name__}")
            except (AssertionError, RuntimeError, TimeoutError, EOFError) as why:
                failed += 1
                print(f"FAILED: {test.__name__}: {why}")
    finally:
        b.close()
    print(f"{len(tests) - failed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())

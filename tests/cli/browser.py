"""A real browser for tests: chromium through chromium-driver, by the WebDriver protocol and nothing but the standard library.

    with Browser(width, height, dark=False) as b:
        b.open(url)
        b.js("return document.title")
        b.wait("return document.querySelector('#send').textContent === 'Send'")
        b.click("#send"); b.type("#text", "hello\\n"); b.shot("name.png")
        b.console()        what the console has said since the last time
"""
import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request

KEYS = {"ENTER": "\ue007", "ESCAPE": "\ue00c", "TAB": "\ue004", "UP": "\ue013", "SHIFT": "\ue008"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def find_programs():
    """Paths of browser and driver, or None."""
    browser = next((p for p in map(shutil.which, ["chromium", "chromium-browser", "google-chrome"]) if p), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    def __init__(self, width=1440, height=900, dark=False, still=False, profile=None):
        self.browser, driver = find_programs()
        self.start(driver)
        args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
                f"--window-size={width},{height}", "--force-device-scale-factor=1"]
        if dark:
            args.append("--blink-settings=preferredColorScheme=0")
        if still:
            args.append("--force-prefers-reduced-motion")
        if profile:
            args.append(f"--user-data-dir={profile}")
        options = {"binary": self.browser, "args": args}
        always = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = None
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": always}})["sessionId"]
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                                                          {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}])

    def start(self, driver):
        """The driver takes a port of its choice for both protocols, and ends if somebody has it for one of them."""
        self.port = None
        for _ in range(10):
            self.driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
            said = ""
            for line in self.driver.stdout:
                said += line
                if "successfully on port" in line:
                    self.port = int(line.rstrip(". \n").split()[-1])
                    return
            self.driver.wait()
            time.sleep(0.5)
        raise RuntimeError(f"chromedriver does not start: {said}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", "")
        except OSError:
            pass
        self.driver.terminate()
        self.driver.wait()

    def call(self, method, path, body=None):
        url = f"http://127.0.0.1:{self.port}" + (f"/session/{self.session}{path}" if self.session else path)
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            value = json.load(e)["value"]
            raise RuntimeError(f"{value['error']}: {value['message'].splitlines()[0]}") from None

    def cdp(self, command, **params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def reload(self):
        self.call("POST", "/refresh")

    def js(self, code, *args):
        return self.call("POST", "/execute/sync", {"script": code, "args": list(args)})

    def js_async(self, code, *args):
        """`code` is the body of an async function; its result comes back."""
        wrapped = "const done = arguments[arguments.length - 1]; (async (...args) => {" + code + "})(...arguments).then(v => done({v}), e => done({e: String(e)}))"
        result = self.call("POST", "/execute/async", {"script": wrapped, "args": list(args)})
        if "e" in result:
            raise RuntimeError(result["e"])
        return result.get("v")

    def wait(self, code, seconds=60, *args):
        """Until the script returns something true."""
        end = time.monotonic() + seconds
        while True:
            value = self.js(code, *args)
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s: {code}")
            time.sleep(0.05)

    def find(self, css):
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call("POST", f"/element/{self.find(css)}/click")

    def type(self, css, text):
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def keys(self, *names):
        actions = [{"type": kind, "value": KEYS.get(n, n)} for n in names for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def move(self, x, y):
        self.call("POST", "/actions", {"actions": [{"type": "pointer", "id": "m", "actions": [{"type": "pointerMove", "x": int(x), "y": int(y)}]}]})

    def shot(self, path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("GET", "/screenshot")))

    def console(self):
        return [f"{e['level']} {e['message']}" for e in self.call("POST", "/se/log", {"type": "browser"})]

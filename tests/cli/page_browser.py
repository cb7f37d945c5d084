"""The server's web page in a real browser: python3 page_browser.py URL SHOTS TRACE [KEYED-URL KEY]. Screenshots go to SHOTS. Prints what fails;
exit code 1 then."""
import glob
import json
import os
import sys
import tempfile
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from browser import Browser

url, shots, trace = sys.argv[1:4]
failures = []
HOSTILE = [
    "<script>window.pwned=1</script> <img src=x onerror=\"window.pwned=2\"> <svg onload=window.pwned=3>",
    "[click](javascript:window.pwned=4) [data](data:text/html,<script>window.pwned=5</script>) ![pic](http://127.0.0.1:9/x.png) <iframe src=//x></iframe>",
    "```html\n<script>window.pwned=6</script>\n</code></pre><img src=x onerror=window.pwned=7>\n```\n",
    "a" * 20000 + " " + "| x " * 400 + "\n\n| a | b |\n|---|---|\n| " + "w" * 3000 + " | <b>c</b> |\n",
    "\u0634\u0645\u0633 \u0645\u0634\u0631\u0642\u0629 \u202e evil \u202c\n\n* " * 3 + "\u0628",
    "*" * 3000 + "_" * 3000 + "[" * 3000 + "`" * 301 + "\n> " * 400 + "- " * 500,
    "\u0000 \uffff &lt;b&gt; \\<b> <style>body{display:none}</style>",
]


def check(what, fine, more=""):
    if not fine:
        failures.append(what)
        print(f"page: {what}: {more}", file=sys.stderr)


def quiet(b, what):
    said = b.console()
    check(f"{what}: the console is quiet", not said, said[:3])


def idle(b):
    b.wait("return document.querySelector('#send').textContent === 'Send'", 120)


def ready(b, address=url, settings=None):
    """The page with nothing in it but these settings."""
    b.open(address + "/health")
    b.js("localStorage.clear(); sessionStorage.clear(); if (arguments[0]) localStorage.setItem('pipedec.settings', JSON.stringify(arguments[0]));", settings)
    b.console()
    b.open(address)
    b.wait("return document.querySelector('#state').className === 'ok'", 120)


def answer_of(b):
    return b.js("return JSON.parse(localStorage.getItem('pipedec.chats')).chats[0].messages.at(-1).content")


def pixels(b, name):
    """How many pixels of a canvas are drawn on."""
    return b.js("const c = document.getElementById(arguments[0]), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n", name)


SHORT = {"sampling": {"max_tokens": 40, "temperature": 0}, "system": "", "theme": ""}
STORY = {"sampling": {"max_tokens": 150, "temperature": 0}, "system": "You write long stories.", "theme": ""}


def conversation(b):
    ready(b, settings=SHORT)
    b.shot(f"{shots}/welcome.png")
    check("one can write at once", b.js("return document.activeElement.id") == "text")
    b.type("#text", "Name three rivers.\n")
    words = b.wait("const w = document.querySelector('#words').textContent; return w.includes('tokens ahead') && w", 60)
    check("words of the pipeline", "of 14 stages busy" in words, words)
    for name in ("chain", "tree", "time"):
        check(f"{name} is drawn", pixels(b, name) > 1000)
    b.wait("return document.querySelector('#f-rate').textContent !== '–'")
    b.shot(f"{shots}/live.png")
    idle(b)
    text = answer_of(b)
    body = json.dumps({"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 40, "temperature": 0}).encode()
    with urllib.request.urlopen(url + "/v1/chat/completions", body, timeout=120) as reply:
        check("the answer is the server's", json.load(reply)["choices"][0]["message"]["content"] == text, text)
    tools = b.js("return document.querySelector('.assistant .tools').textContent")
    check("tokens a second are told", "tokens/s" in tools and "40 tokens" in tools, tools)
    check("hits are told", "%" in b.js("return document.querySelector('#f-hits').textContent"))
    check("new text is told to screen readers", b.js("return document.querySelector('#spoken').textContent.length") > 10)
    b.reload()
    check("a reload keeps the conversation", b.js("return [...document.querySelectorAll('.msg')].length") == 2 and answer_of(b) == text)
    b.click("[data-do=again]")
    idle(b)
    check("regenerate gives another answer in its place", b.js("return document.querySelectorAll('.msg').length") == 2 and answer_of(b) == text, answer_of(b))
    b.click(".user [data-do=edit]")
    b.js("document.querySelector('.edit').value = ''")
    b.type(".edit", "Name two rivers.\n")
    idle(b)
    check("an edited question is asked", b.js("return document.querySelector('.user .body').textContent") == "Name two rivers." and b.js("return document.querySelectorAll('.msg').length") == 2)
    quiet(b, "conversation")


def comparing(b):
    """The same question without predictions: the same text, drawn below."""
    ready(b, settings=SHORT)
    b.click("#compare")
    b.type("#text", "Name three rivers.\n")
    words = b.wait("const w = document.querySelector('#versus-words').textContent; return w.includes('tokens in') && w", 120)
    check("the comparison", "the same text, token for token" in words and "40 tokens in" in words, words)
    b.wait("return !document.querySelector('#versus').hidden")
    check("both runs are drawn", pixels(b, "versus") > 5000)
    b.js("document.querySelector('#live').scrollTop = 0")
    b.shot(f"{shots}/versus.png")
    b.click("#compare")
    quiet(b, "comparing")


def stopping(b):
    ready(b, settings={"sampling": {"temperature": 0, "max_tokens": 1500}, "system": "You write long stories.", "theme": ""})
    b.type("#text", "Write a very long story about a river.\n")
    b.wait("return document.querySelector('.assistant .body')?.textContent.length > 10")
    b.keys("ESCAPE")
    idle(b)
    check("it says that it was stopped", "stopped" in b.js("return document.querySelector('.assistant .tools').textContent"))
    b.wait("return fetch('pipeline').then(r => r.json()).then(p => p.running === 0)", 30)
    b.type("#text", "And now a short one.\n")
    b.wait("return document.querySelectorAll('.assistant').length === 2 && document.querySelectorAll('.assistant')[1].querySelector('.body').textContent.length > 10")
    b.click("#send")
    idle(b)
    b.click("#list-open")
    b.click("#new")
    check("a new conversation is empty", b.js("return document.querySelectorAll('.msg').length") == 0)
    b.click("#chats li:last-child .open")
    check("and the old one is there", b.js("return document.querySelectorAll('.msg').length") == 4)
    b.shot(f"{shots}/list.png")
    b.click("#chats li.now .drop")
    check("until it is deleted", b.js("return document.querySelectorAll('.msg').length") == 0)
    quiet(b, "stopping")


FAKE = """
const texts = arguments[0], real = window.fetch;
window.fetch = (path, ...more) => {
  if (!String(path).includes('chat/completions')) return real(path, ...more);
  const all = texts.join('\\n\\n'), enc = new TextEncoder();
  let at = 0;
  return Promise.resolve(new Response(new ReadableStream({ pull(c) {
    if (at >= all.length) { c.enqueue(enc.encode('data: [DONE]\\n\\n')); c.close(); return; }
    const piece = all.slice(at, at += 997);
    c.enqueue(enc.encode('data: ' + JSON.stringify({ choices: [{ delta: { content: piece } }] }) + '\\n\\n'));
  } })));
};"""


def safe(b, what):
    check(f"{what}: nothing ran", b.js("return window.pwned === undefined"))
    check(f"{what}: no element of HTML", b.js("return document.querySelectorAll('.body script, .body img, .body svg, .body iframe, .body style, .body b').length") == 0)
    check(f"{what}: only safe links", b.js("return [...document.querySelectorAll('.body a')].every(a => /^(https?|mailto):/.test(a.href) && a.rel.includes('noopener'))"))
    check(f"{what}: nothing from elsewhere", b.js("return performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))"))
    check(f"{what}: the page is not wider than the window", b.js("return document.documentElement.scrollWidth <= innerWidth && document.querySelector('#talk').scrollWidth <= document.querySelector('#talk').clientWidth"))


def hostile(b):
    ready(b)
    b.js(FAKE, HOSTILE)
    b.type("#text", "<img src=x onerror=window.pwned=8>\n")
    idle(b)
    b.wait("return document.querySelector('.assistant .body').textContent.includes('pwned=7')")
    safe(b, "a hostile stream")
    check("right to left is written so", b.js("return [...document.querySelectorAll('.assistant .body > *')].some(e => getComputedStyle(e).direction === 'rtl')"))
    check("HTML is shown as text", b.js("return document.querySelector('.assistant .body').textContent.includes('<script>window.pwned=1</script>')"))
    b.reload()
    b.wait("return document.querySelectorAll('.msg').length === 2")
    safe(b, "a hostile conversation")
    b.js("document.querySelector('#talk').scrollTop = 0")
    b.shot(f"{shots}/hostile.png")
    b.open(url + "/health")
    b.js("localStorage.setItem('pipedec.chats', '{\"chats\": [{\"id\": 3}, null, {\"id\": \"x\", \"messages\": [{\"role\": \"system\"}]}], \"current\": 5}')")
    b.js("localStorage.setItem('pipedec.settings', '[')")
    b.console()
    b.open(url)
    b.wait("return document.querySelector('#state').className === 'ok'")
    quiet(b, "hostile")


SCHEMA = {"type": "object", "properties": {"river": {"type": "string", "maxLength": 12}, "long": {"type": "boolean"}}, "required": ["river", "long"]}


def set_field(b, name, text):
    b.js("document.querySelector(`[name=${arguments[0]}]`).value = arguments[1]", name, text)


def schema(b):
    """A schema in the settings: checked, sent, and kept to by the answer."""
    ready(b, settings=SHORT)
    b.click("#settings-open")
    b.click("#held-fields summary")
    for name, text, says in (("schema", "{\"type\": ", "not JSON"), ("schema", "[1]", "an object"), ("tools", "{}", "a list"), ("tools", "[{}]", "a list")):
        set_field(b, "schema", "")
        set_field(b, "tools", "")
        set_field(b, name, text)
        b.click("#settings-form button[value=ok]")
        said = b.js("return document.getElementById(arguments[0] + '-error').textContent", name)
        check(f"{name} {text}: is refused", says in said and b.js("return document.querySelector('#settings').open"), said)
        check(f"{name} {text}: the field is pointed at", b.js("return document.activeElement.name") == name and b.js("return document.activeElement.getAttribute('aria-invalid')") == "true")
    accessible(b, "settings with an error")
    b.shot(f"{shots}/schema-settings.png")
    set_field(b, "tools", "")
    set_field(b, "schema", json.dumps(SCHEMA))
    b.click("#settings-form button[value=ok]")
    check("it is said that a schema holds", b.js("return document.querySelector('#held').textContent").startswith("Replies keep to a schema."))
    b.type("#text", "Name a river.\n")
    idle(b)
    b.wait("return document.querySelector('.assistant .body pre')")
    value = json.loads(answer_of(b))
    check("the answer keeps to the schema", list(value) == ["river", "long"] and isinstance(value["long"], bool) and len(value["river"]) <= 12, value)
    check("it is drawn as JSON", json.loads(b.js("return document.querySelector('.assistant .body pre').textContent")) == value)
    b.shot(f"{shots}/schema.png")
    accessible(b, "schema")
    b.reload()
    check("a reload keeps the schema", b.js("return !document.querySelector('#held').hidden && document.querySelector('.assistant .body pre') !== null"))
    b.click("#settings-open")
    set_field(b, "schema", '{"type": "object", "not": {}}')
    b.click("#settings-form button[value=ok]")
    b.type("#text", "Again.\n")
    said = b.wait("return document.querySelector('.msg:last-child .error')?.textContent")
    check("what the server cannot keep to is said with its place", "/not" in said, said)
    b.click("#held-off")
    check("one can turn it off", b.js("return document.querySelector('#held').hidden && JSON.parse(localStorage.getItem('pipedec.settings')).schema === ''"))
    b.console() # the refused request


CALLS = """
const real = window.fetch;
window.asked = [];
window.fetch = (path, ...more) => {
  if (!String(path).includes('chat/completions')) return real(path, ...more);
  const body = JSON.parse(more[0].body), call = (index, id, name, args) => ({ tool_calls: [{ index, ...(id && { id, type: 'function' }), function: { ...(name && { name }), arguments: args } }] });
  window.asked.push(body);
  const first = body.messages.at(-1).role === 'user', deltas = first ?
    [{ role: 'assistant', content: null }, { reasoning_content: 'Two ' }, { reasoning_content: 'cities <b>.' }, call(0, 'c1', 'weather', ''), call(0, '', '', '{"city": "Par'), call(0, '', '', 'is"}'),
     call(1, 'c2', 'weather', '{"city": "```<img src=x onerror=window.pwned=1>"}')] : [{ role: 'assistant', content: 'It is warm in ' }, { content: 'both.' }];
  const text = deltas.map(delta => 'data: ' + JSON.stringify({ choices: [{ delta }] }) + '\\n\\n').join('') +
    'data: ' + JSON.stringify({ choices: [{ delta: {}, finish_reason: first ? 'tool_calls' : 'stop' }] }) + '\\n\\ndata: [DONE]\\n\\n';
  return Promise.resolve(new Response(new Blob([text]).stream()));
};"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]


def calls(b, name):
    """A stream with calls of tools, as the server sends it; then their results."""
    ready(b, settings={**SHORT, "tools": json.dumps(TOOLS)})
    b.js(CALLS)
    b.type("#text", "How warm is it?\n")
    idle(b)
    b.wait("return document.querySelectorAll('.call').length === 2")
    check(f"{name}: tools are sent", b.js("return window.asked[0].tools") == TOOLS)
    card = "document.querySelectorAll('.call')[arguments[0]]"
    check(f"{name}: a call's name", b.js(f"return {card}.querySelector('.name').textContent", 0) == "Calls weather")
    check(f"{name}: its arguments", json.loads(b.js(f"return {card}.querySelector('pre').textContent", 0)) == {"city": "Paris"})
    check(f"{name}: hostile arguments are text", "onerror" in b.js(f"return {card}.querySelector('pre').textContent", 1))
    check(f"{name}: thoughts", b.js("return document.querySelector('.thought p').textContent") == "Two cities <b>.")
    safe(b, f"{name}: calls")
    accessible(b, f"{name}: calls")
    b.shot(f"{shots}/{name}-calls.png")
    b.reload()
    b.js(CALLS)
    for i, text in enumerate(("20 degrees", "25 degrees")):
        b.type(".call .result textarea", text)
        b.click(".call .result + button")
        check(f"{name}: result {i} is shown", b.js("return [...document.querySelectorAll('.msg.tool .body')].at(-1).textContent") == text)
    idle(b)
    b.wait("return document.querySelector('.msg:last-child .body').textContent === 'It is warm in both.'")
    sent = b.js("return window.asked.map(a => a.messages)")
    check(f"{name}: one request with both results", len(sent) == 1 and [m["role"] for m in sent[0]] == ["user", "assistant", "tool", "tool"], sent)
    check(f"{name}: the calls go back", [c["id"] for c in sent[0][1]["tool_calls"]] == ["c1", "c2"] and sent[0][3] == {"role": "tool", "tool_call_id": "c2", "name": "weather", "content": "25 degrees"}, sent)
    b.shot(f"{shots}/{name}-results.png")
    quiet(b, f"{name}: calls")


def open_file(b, path):
    b.call("POST", f"/element/{b.find('#open')}/value", {"text": path})


def replay(b):
    ready(b)
    open_file(b, trace)
    b.wait("return document.querySelector('#words').textContent.includes('tokens ahead')")
    b.js("const s = document.querySelector('#seek'); s.value = 700; s.dispatchEvent(new Event('input'))")
    b.wait("return document.querySelector('#words').textContent.includes('of 14 stages busy') && document.querySelector('#pause').textContent === 'Play'")
    for name in ("chain", "tree", "time"):
        check(f"{name} is drawn from a file", pixels(b, name) > 1000)
    b.js("document.querySelector('#tree').focus(); document.querySelector('#chain').focus()")
    for _ in range(3):
        b.keys("\ue015")
    tip = b.js("return document.querySelector('#tip').hidden ? '' : document.querySelector('#tip').textContent")
    check("a row says its text", "the token before" in tip or "not predicted" in tip, tip)
    b.shot(f"{shots}/replay.png")
    before = b.js("return document.querySelector('#seek').value")
    for _ in range(5):
        b.click("#step")
    check("a step is spoken", " s: " in b.js("return document.querySelector('#live-said').textContent"))
    check("steps go on", b.js("return +document.querySelector('#seek').value") >= float(before))
    b.js("document.querySelector('#seek').value = 0; document.querySelector('#seek').dispatchEvent(new Event('input'))")
    b.wait("return document.querySelector('#f-rate').textContent === '–'")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"cut.json": open(trace).read()[:-30000], "none.json": "hello", "odd.json": '[{"ph":"X","tid":1,"ts":1e400,"dur":-5},{"ph":"X","tid":9999999,"ts":1,"dur":1},7,null,{"ph":"X","tid":2,"ts":1e22,"dur":1},'
                           '{"ph":"i","cat":"submit","ts":1,"args":{"request":1,"root":5,"sent":[[5,9,1,"x"],[1e99,1,1,1,"<img src=x onerror=window.pwned=9>"]]}},'
                           '{"ph":"X","tid":1,"ts":1,"dur":1000,"name":"batch","args":{"rows":3,"of":[[1,[5,6,7]]]}},'
                           '{"ph":"X","tid":2,"ts":1,"dur":1000,"name":"batch","args":{"rows":2000000000,"of":7}},'
                           '{"ph":"i","cat":"advance","name":"miss","ts":2,"args":{"request":1,"node":5,"text":{"a":1}}}]'}.items():
            path = os.path.join(folder, name)
            with open(path, "w") as f:
                f.write(text)
            open_file(b, path)
            words = b.wait("const w = document.querySelector('#words').textContent, n = arguments[0]; return (w.includes(n) || (n !== 'none.json' && w.includes('busy'))) && w", 20, name)
            check(f"{name} is read, or refused", ("not a trace" in words) == (name == "none.json"), words)
    check("a hostile trace runs nothing", b.js("return window.pwned === undefined"))
    b.click("#now")
    quiet(b, "replay")


def stillness(b):
    """Nothing moves when nothing happens."""
    ready(b)
    b.js("window.draws = 0; const f = CanvasRenderingContext2D.prototype.clearRect; CanvasRenderingContext2D.prototype.clearRect = function (...a) { window.draws++; return f.apply(this, a); }")
    b.wait("const n = window.draws, was = window.was; window.was = n; return n === was && n >= 0 && (window.calm = (window.calm || 0) + 1) > 20", 30)
    quiet(b, "stillness")


def small(b, name):
    ready(b, settings=STORY)
    check(f"{name}: not wider than the window", b.js("return document.documentElement.scrollWidth <= innerWidth"))
    check(f"{name}: the button to send is there", b.js("const r = document.querySelector('#send').getBoundingClientRect(); return r.right <= innerWidth && r.bottom <= innerHeight && r.width > 30"))
    b.type("#text", "Tell me a story.\n") # long enough to be looked at
    b.click("#panes [data-pane=live]")
    b.wait("return document.querySelector('#words').textContent.includes('busy')")
    check(f"{name}: the pipeline is not wider than the window", b.js("return document.documentElement.scrollWidth <= innerWidth"))
    b.shot(f"{shots}/{name}-live.png")
    b.click("#panes [data-pane=chat]")
    idle(b)
    b.shot(f"{shots}/{name}-chat.png")
    quiet(b, name)


def accessible(b, name):
    """axe-core, where the clients' environment has it."""
    found = glob.glob(os.path.join(os.environ.get("AXE", "/nonexistent"), "axe.min.js"))
    if not found:
        print("page: axe-core is not there: not checked by it", file=sys.stderr)
        return
    b.js(open(found[0]).read() + "; window.axe = axe")
    result = b.js_async("return (await axe.run(document, { resultTypes: ['violations'] })).violations.map(v => v.id + ': ' + v.nodes.map(n => n.target.join(' ') + ' ' + (n.any[0]?.message ?? '')).join(' | '))")
    check(f"{name}: axe-core finds nothing", not result, result)


def dark(b):
    ready(b, settings=SHORT)
    check("dark is dark", b.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(x => x < 60)"))
    b.type("#text", "Write a C function that adds two numbers.\n")
    b.wait("return document.querySelector('#words').textContent.includes('tokens a step')")
    b.shot(f"{shots}/dark.png")
    idle(b)
    accessible(b, "dark")
    b.click("#settings-open")
    b.wait("return document.querySelector('#settings').open")
    accessible(b, "settings")
    b.shot(f"{shots}/settings.png")
    quiet(b, "dark")


def locked(b, address, key):
    b.open(address)
    b.wait("return document.querySelector('#state').textContent.includes('no valid API key')")
    b.console()
    b.click("#settings-open")
    b.type("[name=key]", key)
    b.click("#settings-form button[value=ok]")
    b.wait("return document.querySelector('#state').className === 'ok'", 120)
    b.type("#text", "Hello\n")
    b.wait("return document.querySelector('.assistant .body')?.textContent.length > 3")
    check("the key is not kept beyond the tab", key not in b.js("return JSON.stringify(localStorage)"))


with Browser(1440, 900) as browser:
    conversation(browser)
    accessible(browser, "light")
    stopping(browser)
    comparing(browser)
    schema(browser)
    calls(browser, "wide")
    hostile(browser)
    replay(browser)
    stillness(browser)
    if len(sys.argv) > 5:
        locked(browser, sys.argv[4], sys.argv[5])
with Browser(390, 844) as browser:
    small(browser, "phone")
    accessible(browser, "phone")
    calls(browser, "phone")
with Browser(1440, 900, dark=True, still=True) as browser:
    dark(browser)
    calls(browser, "dark")
sys.exit(1 if failures else 0)

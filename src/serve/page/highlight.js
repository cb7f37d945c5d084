/* A little colour for code: comments, strings, numbers and common keywords, the same for all languages. */
const HASH = new Set(["python", "py", "sh", "bash", "shell", "ruby", "rb", "yaml", "yml", "toml", "make", "cmake", "perl", "r"]);
const WORDS = new Set(("and as assert async await auto bool break case catch char class const constexpr continue def default delete do double elif else enum except export extends extern " +
  "false final finally float fn for from func function goto go if impl import in include inline int interface is lambda let long loop match mod mut new nil none None not null or package " +
  "pass private protected pub public raise return self short signed sizeof static struct super switch template then this throw trait true True False try type typedef typename union unsigned " +
  "use using var virtual void volatile where while with yield echo fi done esac local select insert update from where create table").split(" "));
const C_LIKE = /(\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|("(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?)|\b(0x[\da-fA-F]+|\d+(?:\.\d+)?)\b|\b([A-Za-z_]\w*)\b/g;
const HASHED = /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|\b(0x[\da-fA-F]+|\d+(?:\.\d+)?)\b|\b([A-Za-z_]\w*)\b/g;
const MOST = 60000;

export function highlight(to, text, lang) {
  let at = 0;
  if (text.length > MOST || lang === "text" || lang === "txt") { to.append(text); return; }
  for (const m of text.matchAll(HASH.has(lang) ? HASHED : C_LIKE)) {
    const kind = m[1] ? "tok-c" : m[2] ? "tok-s" : m[3] ? "tok-n" : WORDS.has(m[4]) ? "tok-k" : null;
    if (!kind) continue;
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = m[0];
    to.append(text.slice(at, m.index), span);
    at = m.index + m[0].length;
  }
  to.append(text.slice(at));
}

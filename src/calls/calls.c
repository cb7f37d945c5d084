#include "calls/calls.h"

#include "calls/json.h"

#include <stdlib.h>
#include <string.h>

enum state {
    AT_START,     /* reasoning may begin */
    IN_REASONING, /* until </think> */
    IN_TEXT,
    IN_HEAD,      /* lead blanks, a marker, and what may become a call's head */
    IN_ARGUMENTS, /* an object, given out as it comes */
    IN_TAIL,      /* of the call's own object, behind the arguments */
    BEHIND_CALL,  /* what closes it, or leads to the next one */
    IN_HEADER,    /* of a harmony message, up to <|message|> */
    IN_BODY       /* up to a marker that ends it */
};

struct calls {
    struct arena arena;
    struct calls_options o;
    struct calls_sink sink;
    enum state state;
    char *data; /* [size] not given out yet */
    size_t size, room, at;
    size_t lead, marker; /* IN_HEAD: bytes of them */
    bool skip;           /* blanks that come next are left out */
    bool begun;          /* there has been text that is more than blanks */
    bool called;
    bool bare;                /* of mistral: arguments without an object around them */
    bool in_list;             /* of mistral */
    int depth;                /* of the arguments */
    bool quoted, escaped;     /* within them */
    enum calls_piece channel; /* of harmony: where the body goes */
    bool first;               /* nothing has been a header yet */
};

/* DeepSeek's own bars and low lines. */
#define DEEPSEEK(words) "<\xEF\xBD\x9C" words "\xEF\xBD\x9C>"
#define LOW             "\xE2\x96\x81"

static const char think[] = "<think>", unthink[] = "</think>";

/* ---- families ---- */

static const struct {
    const char *name;
    const char *marker; /* in front of a call */
    const char *close;  /* behind it; NULL: none */
} families[CALLS_FAMILIES] = {
    [CALLS_NONE] = {"none", NULL, NULL},
    [CALLS_HERMES] = {"hermes", "<tool_call>", "</tool_call>"},
    [CALLS_LLAMA] = {"llama", "<|python_tag|>", NULL},
    [CALLS_MISTRAL] = {"mistral", "[TOOL_CALLS]", NULL},
    [CALLS_HARMONY] = {"harmony", NULL, NULL},
    [CALLS_DEEPSEEK] = {"deepseek", DEEPSEEK("tool" LOW "calls" LOW "begin"), NULL},
};
/* Of harmony: what ends a body; <|message|> ends a header, and <|constrain|> is a part of one. */
static const char *const body_ends[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"};
static const char message_marker[] = "<|message|>", constrain_marker[] = "<|constrain|>";
static const char one_begin[] = DEEPSEEK("tool" LOW "call" LOW "begin"),
                  one_sep[] = DEEPSEEK("tool" LOW "sep"), one_end[] = DEEPSEEK("tool" LOW "call" LOW "end"),
                  all_end[] = DEEPSEEK("tool" LOW "calls" LOW "end"), json_fence[] = "```json",
                  fence[] = "```";
static const char args_marker[] = "[ARGS]", id_marker[] = "[CALL_ID]";

const char *calls_family_name(enum calls_family f)
{
    return (unsigned)f < CALLS_FAMILIES ? families[f].name : "none";
}

enum calls_family calls_family_of(const char *t)
{
    if (!t)
        return CALLS_NONE;
    if (strstr(t, "<|channel|>") && strstr(t, message_marker))
        return CALLS_HARMONY;
    if (strstr(t, families[CALLS_DEEPSEEK].marker))
        return CALLS_DEEPSEEK;
    if (strstr(t, "[TOOL_CALLS]"))
        return CALLS_MISTRAL;
    if (strstr(t, "<tool_call>"))
        return CALLS_HERMES;
    if (strstr(t, "<|python_tag|>") || (strstr(t, "<|start_header_id|>") && strstr(t, "\"parameters\"")))
        return CALLS_LLAMA;
    return CALLS_NONE;
}

bool calls_reasons(const char *t)
{
    return t && (strstr(t, unthink) || calls_family_of(t) == CALLS_HARMONY);
}

static bool same(const char *word, const char *s, size_t n)
{
    return word && strlen(word) == n && memcmp(word, s, n) == 0;
}

bool calls_is_marker(enum calls_family f, bool reasoning, const char *name, size_t size)
{
    if (reasoning && (same(think, name, size) || same(unthink, name, size)))
        return true;
    if (f == CALLS_MISTRAL && (same(args_marker, name, size) || same(id_marker, name, size)))
        return true;
    for (size_t i = 0; i < PD_COUNT(body_ends) && f == CALLS_HARMONY; i++)
        if (same(body_ends[i], name, size))
            return true;
    if (f == CALLS_HARMONY && (same(message_marker, name, size) || same(constrain_marker, name, size)))
        return true;
    if (f == CALLS_DEEPSEEK && (same(one_begin, name, size) || same(one_sep, name, size) ||
                                same(one_end, name, size) || same(all_end, name, size)))
        return true;
    return same(families[f].marker, name, size) || same(families[f].close, name, size);
}

bool calls_prompt_reasons(const char *prompt, size_t size)
{
    while (size && is_blank(prompt[size - 1]))
        size--;
    const size_t n = sizeof think - 1;
    return size >= n && memcmp(prompt + size - n, think, n) == 0;
}

/* ---- what is held ---- */

static const char *held(const struct calls *c, size_t *n)
{
    *n = c->size - c->at;
    return c->data + c->at;
}

static void give(struct calls *c, enum calls_piece what, const char *data, size_t n)
{
    for (size_t i = 0; i < n && what == CALLS_TEXT && !c->begun; i++)
        c->begun = !is_blank(data[i]);
    if (n || what == CALLS_END)
        c->sink.piece(c->sink.user, what, data, n);
}

/* The next n bytes. */
static void pass(struct calls *c, enum calls_piece what, size_t n)
{
    give(c, what, c->data + c->at, n);
    c->at += n;
}

/* False: there is nothing but blanks so far. */
static bool skip_blanks(struct calls *c)
{
    while (c->skip && c->at < c->size && is_blank(c->data[c->at]))
        c->at++;
    c->skip = c->skip && c->at == c->size;
    return !c->skip;
}

/* Of s[n] so many bytes are certainly in front of `word`, which is whole at that place if *found; blanks there may have to
 * go. */
static size_t before(const char *s, size_t n, const char *word, bool *found)
{
    const size_t w = word ? strlen(word) : 0;
    *found = false;
    if (!w)
        return n;
    for (size_t i = 0; i < n; i++) {
        const size_t k = PD_MIN(w, n - i);
        if (memcmp(s + i, word, k) == 0) {
            *found = k == w;
            return i;
        }
    }
    return n;
}

static size_t less_blanks(const char *s, size_t n)
{
    while (n && is_blank(s[n - 1]))
        n--;
    return n;
}

/* ---- states; each returns false if it needs more ---- */

static bool at_start(struct calls *c)
{
    size_t n, blanks = 0;
    const char *s = held(c, &n);
    while (blanks < n && is_blank(s[blanks]))
        blanks++;
    const size_t k = PD_MIN(n - blanks, sizeof think - 1);
    if (memcmp(s + blanks, think, k) != 0) {
        c->state = IN_TEXT;
        return true;
    }
    if (k < sizeof think - 1)
        return false;
    c->at += blanks + k;
    c->state = IN_REASONING;
    c->skip = true;
    return true;
}

static bool in_reasoning(struct calls *c)
{
    size_t n;
    bool found;
    if (!skip_blanks(c))
        return false;
    const char *s = held(c, &n);
    const size_t end = before(s, n, unthink, &found);
    pass(c, CALLS_REASONING, less_blanks(s, end));
    if (!found)
        return false;
    c->at += end - less_blanks(s, end) + sizeof unthink - 1;
    c->state = IN_TEXT;
    c->skip = true;
    return true;
}

static bool in_text(struct calls *c)
{
    size_t n, blanks = 0;
    bool found;
    if (!skip_blanks(c))
        return false;
    const char *s = held(c, &n);
    while (blanks < n && is_blank(s[blanks]))
        blanks++;
    if (c->o.family == CALLS_LLAMA && !c->begun && !c->called && blanks < n && s[blanks] == '{') {
        c->lead = blanks;
        c->marker = 0;
        c->state = IN_HEAD;
        return true;
    }
    const size_t end = before(s, n, families[c->o.family].marker, &found);
    const size_t sure = c->o.family == CALLS_NONE ? end : less_blanks(s, end);
    pass(c, CALLS_TEXT, sure);
    if (!found)
        return false;
    c->lead = end - sure;
    c->marker = strlen(families[c->o.family].marker);
    c->state = IN_HEAD;
    return true;
}

static bool is_known(const struct calls *c, const char *name)
{
    for (size_t i = 0; i < c->o.n_names; i++)
        if (strcmp(c->o.names[i], name) == 0)
            return true;
    return false;
}

/* It is no call: what looked like its beginning is text. */
static bool no_call(struct calls *c)
{
    size_t n;
    held(c, &n);
    pass(c, CALLS_TEXT, PD_MIN(n, c->lead + PD_MAX(c->marker, 1)));
    c->begun = true;
    c->in_list = false;
    c->state = IN_TEXT;
    return true;
}

static void begin_call(struct calls *c, const char *name)
{
    c->called = true;
    give(c, CALLS_NAME, name, strlen(name));
}

/* name[ARGS]{...} */
static enum got scan_bare(struct scan *s, struct head *h)
{
    const size_t from = s->at, limit = PD_MIN(s->n - from, sizeof h->name - 1);
    const char *words = s->s + from;
    size_t k = 0;
    *h = (struct head){.name = ""};
    while (k < limit && words[k] && words[k] != '[' && words[k] != '{' && !is_blank(words[k]))
        k++;
    if (k == s->n - from)
        return GOT_MORE;
    if (k == 0 || words[k] != '[')
        return GOT_BAD;
    memcpy(h->name, words, k);
    s->at += k;
    const size_t left = s->n - s->at, id = sizeof id_marker - 1, args = sizeof args_marker - 1;
    if (memcmp(s->s + s->at, id_marker, PD_MIN(left, id)) == 0) {
        const char *next = left > id ? memchr(s->s + s->at + id, '[', left - id) : NULL;
        if (!next)
            return GOT_MORE;
        s->at = (size_t)(next - s->s);
    }
    const size_t there = PD_MIN(s->n - s->at, args);
    if (memcmp(s->s + s->at, args_marker, there) != 0)
        return GOT_BAD;
    if (there < args)
        return GOT_MORE;
    s->at += args;
    scan_blanks(s);
    h->args = s->at;
    h->has_name = true;
    return s->at == s->n ? GOT_MORE : s->s[s->at] == '{' ? GOT_IT : GOT_BAD;
}

/* Behind blanks: this word, which is passed. */
static enum got scan_word(struct scan *s, const char *word)
{
    scan_blanks(s);
    const size_t w = strlen(word), there = PD_MIN(s->n - s->at, w);
    if (memcmp(s->s + s->at, word, there) != 0)
        return GOT_BAD;
    if (there < w)
        return GOT_MORE;
    s->at += w;
    return GOT_IT;
}

/* A name up to what can't be in one. */
static enum got scan_name(struct scan *s, char name[CALLS_NAME_MAX])
{
    size_t k = 0;
    scan_blanks(s);
    const char *from = s->s + s->at;
    const size_t n = s->n - s->at;
    while (k < n && k + 1 < CALLS_NAME_MAX && from[k] && !strchr("<{`\"", from[k]) && !is_blank(from[k]))
        k++;
    if (k == n)
        return GOT_MORE;
    if (k == 0 || k + 1 == CALLS_NAME_MAX)
        return GOT_BAD;
    memcpy(name, from, k);
    name[k] = 0;
    s->at += k;
    return GOT_IT;
}

/* f SEP {...}, or: function SEP f, ```json, {...} */
static enum got scan_deepseek(struct scan *s, struct head *h)
{
    enum got g;
    *h = (struct head){.name = ""};
    if ((g = scan_word(s, one_begin)) != GOT_IT || (g = scan_name(s, h->name)) != GOT_IT ||
        (g = scan_word(s, one_sep)) != GOT_IT)
        return g;
    scan_blanks(s);
    if (s->at == s->n)
        return GOT_MORE;
    if (s->s[s->at] != '{' &&
        ((g = scan_name(s, h->name)) != GOT_IT || (g = scan_word(s, json_fence)) != GOT_IT))
        return g;
    scan_blanks(s);
    h->args = s->at;
    h->has_name = true;
    return s->at == s->n ? GOT_MORE : s->s[s->at] == '{' ? GOT_IT : GOT_BAD;
}

/* Behind a call of DeepSeek's: its end, and the next one's beginning or the end of all; each may be missing. */
static bool behind_deepseek(struct calls *c)
{
    struct scan s = {.at = 0};
    s.s = held(c, &s.n);
    enum got g = scan_word(&s, fence);
    if (g != GOT_MORE)
        g = scan_word(&s, one_end);
    if (g == GOT_IT) {
        struct scan next = s;
        if ((g = scan_word(&next, one_begin)) == GOT_IT) {
            c->at += s.at;
            c->lead = c->marker = 0;
            c->in_list = true;
            c->state = IN_HEAD;
            return true;
        }
        if (g == GOT_BAD && (g = scan_word(&s, all_end)) == GOT_BAD)
            g = GOT_IT;
    }
    if (g == GOT_MORE)
        return false;
    c->at += s.at;
    c->in_list = false;
    c->skip = true;
    c->state = IN_TEXT;
    return true;
}

static enum got scan_call(struct calls *c, struct scan *s, struct head *h)
{
    scan_blanks(s);
    c->bare = false;
    if (s->at == s->n)
        return GOT_MORE;
    if (c->o.family == CALLS_DEEPSEEK) {
        c->bare = true;
        return scan_deepseek(s, h);
    }
    if (c->o.family != CALLS_MISTRAL || s->s[s->at] == '{')
        return scan_head(s, h);
    c->bare = s->s[s->at] != '[';
    if (c->bare)
        return scan_bare(s, h);
    c->in_list = true;
    s->at++;
    return scan_head(s, h);
}

/* Arguments that are known as a whole: an object, one within a string, or none. */
static void whole_arguments(struct calls *c, const char *s, const struct head *h)
{
    const char *from = s + h->args;
    const size_t n = h->args_end - h->args;
    if (n && *from == '{') {
        give(c, CALLS_ARGUMENTS, from, n);
    } else if (n > 2 && *from == '"') {
        char *text = mem_new(n, 1);
        give(c, CALLS_ARGUMENTS, text, json_unescape(text, from + 1, n - 2));
        free(text);
    } else {
        give(c, CALLS_ARGUMENTS, "{}", 2);
    }
}

static bool in_head(struct calls *c)
{
    struct head h;
    struct scan s = {.at = c->lead + c->marker};
    s.s = held(c, &s.n);
    enum got g = scan_call(c, &s, &h);
    const bool marked = c->marker || c->in_list;
    if (g == GOT_IT && !marked && (!h.args || !is_known(c, h.name)))
        g = GOT_BAD;
    const size_t known = g == GOT_IT ? s.at : s.n;
    if (g == GOT_BAD || known - c->lead > CALLS_HEAD_MAX)
        return no_call(c);
    if (g == GOT_MORE)
        return false;
    begin_call(c, h.name);
    if (h.end) {
        whole_arguments(c, s.s, &h);
        give(c, CALLS_END, "", 0);
        c->at += h.end;
        c->state = BEHIND_CALL;
        return true;
    }
    c->at += h.args;
    c->depth = 0;
    c->quoted = c->escaped = false;
    c->state = IN_ARGUMENTS;
    return true;
}

/* True: the object ends with this character. */
static bool count_bracket(struct calls *c, char x)
{
    if (c->quoted) {
        if (c->escaped)
            c->escaped = false;
        else if (x == '\\')
            c->escaped = true;
        else
            c->quoted = x != '"';
        return false;
    }
    c->quoted = x == '"';
    c->depth += (x == '{' || x == '[') - (x == '}' || x == ']');
    return c->depth == 0;
}

static bool in_arguments(struct calls *c)
{
    size_t n, k = 0;
    const char *s = held(c, &n);
    bool over = false;
    while (k < n && !over)
        over = count_bracket(c, s[k++]);
    pass(c, CALLS_ARGUMENTS, k);
    if (!over)
        return false;
    c->state = IN_TAIL;
    if (c->bare) {
        give(c, CALLS_END, "", 0);
        c->state = BEHIND_CALL;
    }
    return true;
}

/* Fields behind the arguments, such as an id. */
static enum got scan_tail(struct scan *s)
{
    size_t begin, end;
    enum got g;
    while ((g = scan_char(s, ',')) == GOT_IT)
        if ((g = scan_string(s, &begin, &end)) != GOT_IT || (g = scan_char(s, ':')) != GOT_IT ||
            (g = scan_value(s)) != GOT_IT)
            return g;
    return g == GOT_BAD ? scan_char(s, '}') : g;
}

static bool in_tail(struct calls *c)
{
    struct scan s = {.at = 0};
    s.s = held(c, &s.n);
    enum got g = scan_tail(&s);
    if (g == GOT_MORE && s.n <= CALLS_HEAD_MAX)
        return false;
    if (s.at > CALLS_HEAD_MAX)
        g = GOT_BAD;
    give(c, CALLS_END, "", 0);
    if (g == GOT_IT)
        c->at += s.at;
    c->state = g == GOT_IT ? BEHIND_CALL : IN_TEXT;
    c->skip = true;
    return true;
}

/* The call's closing marker, which may be missing. */
static enum got scan_close(const struct calls *c, struct scan *s)
{
    const char *close = families[c->o.family].close;
    const size_t w = close ? strlen(close) : 0, k = PD_MIN(w, s->n - s->at);
    if (memcmp(s->s + s->at, close ? close : "", k) != 0)
        return GOT_BAD;
    if (k < w)
        return GOT_MORE;
    s->at += w;
    return GOT_IT;
}

/* Another call follows without a marker of its own: from s->at on. */
static bool leads_on(const struct calls *c, struct scan *s)
{
    if (c->o.family == CALLS_LLAMA && s->s[s->at] == ';') {
        s->at++;
        scan_blanks(s);
    }
    if (c->in_list && s->s[s->at] == ',') {
        s->at++;
        return true;
    }
    return c->o.family == CALLS_LLAMA && s->at < s->n && s->s[s->at] == '{';
}

static bool behind_call(struct calls *c)
{
    if (c->o.family == CALLS_DEEPSEEK)
        return behind_deepseek(c);
    struct scan s = {.at = 0};
    s.s = held(c, &s.n);
    scan_blanks(&s);
    if (s.at == s.n)
        return false;
    c->state = IN_TEXT;
    c->skip = true;
    if (families[c->o.family].close) {
        enum got g = scan_close(c, &s);
        if (g == GOT_MORE) {
            c->state = BEHIND_CALL;
            return false;
        }
        c->at += g == GOT_IT ? s.at : 0;
        return true;
    }
    if (c->in_list && s.s[s.at] == ']') {
        c->in_list = false;
        c->at += s.at + 1;
        return true;
    }
    if (leads_on(c, &s)) {
        c->skip = false;
        c->lead = c->marker = 0;
        c->state = IN_HEAD;
    } else if (s.at == s.n) { /* behind a semicolon */
        c->state = BEHIND_CALL;
        return false;
    } else {
        c->in_list = false;
        return true;
    }
    c->at += s.at;
    return true;
}

/* ---- harmony ---- */

/* The words of a header: a channel, and to whom the message goes. */
static void read_header(struct calls *c, const char *s, size_t n)
{
    static const char to[] = "to=functions.";
    char name[CALLS_NAME_MAX];
    const char *at = memmem(s, n, to, sizeof to - 1);
    c->channel = c->o.reasoning && memmem(s, n, "analysis", 8) ? CALLS_REASONING : CALLS_TEXT;
    if (!at)
        return;
    at += sizeof to - 1;
    size_t k = 0;
    while (at + k < s + n && k + 1 < sizeof name && at[k] && !is_blank(at[k]) && at[k] != '<')
        k++;
    if (k == 0)
        return;
    memcpy(name, at, k);
    name[k] = 0;
    c->channel = CALLS_ARGUMENTS;
    c->depth = 0;
    c->quoted = c->escaped = false;
    begin_call(c, name);
}

/* Does a reply that begins so have channels? GOT_MORE: not known yet. */
static enum got scan_channels(const char *s, size_t n)
{
    static const char *const begins[] = {"<|channel|>", "<|start|>", "to="};
    while (n && is_blank(*s)) {
        s++;
        n--;
    }
    for (size_t i = 0; i < PD_COUNT(begins); i++) {
        const size_t w = strlen(begins[i]);
        if (memcmp(s, begins[i], PD_MIN(w, n)) == 0)
            return n < w ? GOT_MORE : GOT_IT;
    }
    return GOT_BAD;
}

static bool in_header(struct calls *c)
{
    size_t n;
    bool found = false;
    const char *s = held(c, &n);
    enum got g = c->first ? scan_channels(s, n) : GOT_IT;
    if (g == GOT_MORE)
        return false;
    const size_t end = g == GOT_IT ? before(s, n, message_marker, &found) : 0;
    if (g == GOT_BAD || end > CALLS_HEAD_MAX) { /* a text without channels */
        c->channel = CALLS_TEXT;
        c->state = IN_BODY;
        return true;
    }
    if (!found)
        return false;
    c->first = false;
    read_header(c, s, end);
    c->at += end + sizeof message_marker - 1;
    c->state = IN_BODY;
    return true;
}

static void body_ended(struct calls *c)
{
    if (c->channel == CALLS_ARGUMENTS)
        give(c, CALLS_END, "", 0);
    c->channel = CALLS_TEXT;
}

static bool in_body(struct calls *c)
{
    size_t n;
    const char *s = held(c, &n);
    size_t end = n;
    bool found = false;
    for (size_t i = 0; i < PD_COUNT(body_ends); i++) {
        bool whole;
        const size_t at = before(s, n, body_ends[i], &whole);
        if (at < end) {
            end = at;
            found = whole;
        }
    }
    for (size_t i = 0; i < end && c->channel == CALLS_ARGUMENTS; i++)
        count_bracket(c, s[i]);
    pass(c, c->channel, end);
    if (!found)
        return false;
    body_ended(c);
    c->first = false;
    c->state = IN_HEADER;
    return true;
}

static bool step(struct calls *c)
{
    switch (c->state) {
    case AT_START:
        return at_start(c);
    case IN_REASONING:
        return in_reasoning(c);
    case IN_TEXT:
        return in_text(c);
    case IN_HEAD:
        return in_head(c);
    case IN_ARGUMENTS:
        return in_arguments(c);
    case IN_TAIL:
        return in_tail(c);
    case BEHIND_CALL:
        return behind_call(c);
    case IN_HEADER:
        return in_header(c);
    case IN_BODY:
        return in_body(c);
    }
    return false;
}

/* ---- life ---- */

struct calls *calls_new(const struct calls_options *o, const struct calls_sink *sink)
{
    struct calls *c = mem_new(1, sizeof *c);
    c->o = *o;
    c->sink = *sink;
    c->room = 256;
    c->data = mem_new(c->room, 1);
    const char **names = arena_take(&c->arena, (o->n_names + 1) * sizeof *names);
    for (size_t i = 0; i < o->n_names; i++)
        names[i] = arena_strdup(&c->arena, o->names[i]);
    c->o.names = names;
    c->state = !o->reasoning ? IN_TEXT : o->reasons ? IN_REASONING : AT_START;
    c->skip = o->reasoning && o->reasons;
    c->first = true;
    if (o->family == CALLS_HARMONY) {
        c->state = IN_HEADER;
        c->skip = false;
    }
    return c;
}

void calls_push(struct calls *c, const char *data, size_t size)
{
    if (!size)
        return;
    if (c->at)
        memmove(c->data, c->data + c->at, c->size - c->at);
    c->size -= c->at;
    c->at = 0;
    if (c->room - c->size < size) {
        c->room = PD_MAX(2 * c->room, c->size + size);
        c->data = realloc(c->data, c->room);
        PD_ASSERT(c->data);
    }
    memcpy(c->data + c->size, data, size);
    c->size += size;
    while (c->at < c->size && step(c))
        ;
}

void calls_finish(struct calls *c)
{
    size_t n = c->size - c->at;
    switch (c->state) {
    case IN_REASONING:
        pass(c, CALLS_REASONING, c->skip ? 0 : less_blanks(c->data + c->at, n));
        break;
    case IN_TAIL:
        give(c, CALLS_END, "", 0);
        break;
    case IN_ARGUMENTS:
    case BEHIND_CALL:
        break;
    case IN_HEADER:
        pass(c, CALLS_TEXT, c->first ? n : 0);
        break;
    case IN_BODY:
        pass(c, c->channel, n);
        if (c->depth == 0) /* a call that is whole */
            body_ended(c);
        break;
    default:
        if (!c->skip && !(c->called && less_blanks(c->data + c->at, n) == 0))
            pass(c, CALLS_TEXT, n);
    }
    c->at = c->size;
}

void calls_free(struct calls *c)
{
    if (!c)
        return;
    arena_free(&c->arena);
    free(c->data);
    free(c);
}

#include "host/trace_json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { LINK_TRACK = 1000 /* track of the hop out of role r: LINK_TRACK + r */, WHOLE_MAX = 512, PIECE = 64 };

/* `fmt` gives all of an object, or a part of it. */
static void PD_PRINTF(2, 3) put(struct bytes *out, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    PD_ASSERT(n >= 0 && n < (int)sizeof text);
    bytes_add(out, text, (size_t)n);
}

static void put_number(struct bytes *out, uint32_t x)
{
    char text[12];
    int at = sizeof text;
    do
        text[--at] = (char)('0' + x % 10);
    while (x /= 10);
    bytes_add(out, text + at, sizeof text - (size_t)at);
}

/* Bytes of the UTF-8 character at s, of n; 0: that is none. */
static size_t character(const unsigned char *s, size_t n)
{
    const size_t size = s[0] < 0x80                   ? 1
                        : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                        : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                        : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                      : 0;
    if (!size || size > n)
        return 0;
    for (size_t i = 1; i < size; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return size;
}

/* A token may be part of a character: what is none becomes U+FFFD. */
static void put_piece(const struct trace_form *f, struct bytes *out, int32_t token)
{
    char text[PIECE];
    const size_t n = f->piece(f->piece_user, token, text, sizeof text);
    bytes_add(out, "\"", 1);
    for (size_t i = 0; i < n;) {
        const unsigned char *s = (const unsigned char *)text + i;
        const size_t size = character(s, n - i);
        if (!size)
            bytes_add(out, "\\ufffd", 6);
        else if (*s == '"' || *s == '\\')
            put(out, "\\%c", *s);
        else if (*s < 32 || *s == 127)
            put(out, "\\u%04x", *s);
        else
            bytes_add(out, s, size);
        i += size ? size : 1;
    }
    bytes_add(out, "\"", 1);
}

static void name_track(struct bytes *out, int track, const char *name)
{
    put(out, ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}",
        track, name);
    put(out,
        ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%d}}",
        track, track);
}

void trace_json_head(struct trace_form *f, struct bytes *out)
{
    put(out,
        ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":0,\"name\":\"process_name\",\"args\":{\"name\":\"pipedec\"}}");
    name_track(out, ROLE_DRAFTER, "drafter");
    for (int i = 0; i < f->n_stages; i++) {
        char name[32];
        snprintf(name, sizeof name, "stage %d", i);
        name_track(out, role_stage(i), name);
    }
    name_track(out, role_verifier(f->n_stages), "verifier");
}

static double us(int64_t ns)
{
    return (double)ns / 1e3;
}

/* ---- batches ---- */

/* Nodes by request: rows of one are mostly together. */
static void put_rows(struct bytes *out, const struct row *rows, int n)
{
    uint32_t request = 0;
    int n_prompt = 0;
    for (int i = 0; i < n; i++) {
        if (!rows[i].node.v) {
            n_prompt++;
            continue;
        }
        if (rows[i].request != request)
            put(out, request ? "]],[%u,[" : ",\"of\":[[%u,[", rows[i].request);
        else
            bytes_add(out, ",", 1);
        request = rows[i].request;
        put_number(out, rows[i].node.v);
    }
    if (request)
        put(out, "]]]");
    if (n_prompt)
        put(out, ",\"prompt\":%d", n_prompt);
}

static void put_span(struct bytes *out, const struct observation *o, const char *name)
{
    put(out,
        ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s\",\"cat\":\"%s\","
        "\"args\":{\"rows\":%d,\"rows_live\":%d,\"rows_dead\":%d",
        o->role, us(o->begin_ns), us(o->end_ns - o->begin_ns), name, name, o->rows, o->rows_live,
        o->rows - o->rows_live);
    if (o->list && o->role != ROLE_DRAFTER)
        put_rows(out, o->list, o->rows);
    put(out, "}}");
}

/* Transfers of one hop may overlap (latency beside bandwidth), so they are asynchronous events, not spans. */
static void put_link(struct trace_form *f, struct bytes *out, const struct observation *o)
{
    uint64_t id = ++f->links_seen;
    put(out,
        ",\n{\"ph\":\"b\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"id\":%" PRIu64
        ",\"name\":\"hop %d-%d\",\"cat\":\"link\",\"args\":{\"rows\":%d}}",
        LINK_TRACK + o->role, us(o->begin_ns), id, o->role, o->to, o->rows);
    put(out,
        ",\n{\"ph\":\"e\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"id\":%" PRIu64
        ",\"name\":\"hop %d-%d\",\"cat\":\"link\"}",
        LINK_TRACK + o->role, us(o->end_ns), id, o->role, o->to);
}

/* ---- the tree ---- */

const char *verdict_name(enum tree_verdict v)
{
    static const char *const names[] = {"hit", "late hit", "miss", "last"};
    return names[v];
}

static void put_advance(struct trace_form *f, struct bytes *out, const struct observation *o)
{
    put(out,
        ",\n{\"ph\":\"i\",\"s\":\"p\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"name\":\"%s\",\"cat\":\"advance\","
        "\"args\":{\"token\":%" PRId32 ",\"pos\":%" PRId32,
        role_verifier(f->n_stages), us(o->begin_ns), verdict_name(o->verdict), o->token, o->pos);
    if (o->tree && o->tree->count)
        put(out, ",\"request\":%u,\"node\":%u", o->request, o->tree->nodes[o->tree->root].id.v);
    if (f->piece) {
        put(out, ",\"text\":");
        put_piece(f, out, o->token);
    }
    put(out, "}}");
}

static void put_node(struct trace_form *f, struct bytes *out, const struct tree *t, int node)
{
    const struct tree_node *x = &t->nodes[node];
    put(out, "[%u,%u,%" PRId32 ",%.2f", x->id.v, tree_parent_id(t, node).v, x->token,
        node == t->root ? 0 : (double)x->logp);
    if (f->piece) {
        bytes_add(out, ",", 1);
        put_piece(f, out, x->token);
    }
    bytes_add(out, "]", 1);
}

/* What is in flight, for one who begins to watch. */
static void put_whole(struct trace_form *f, struct bytes *out, const struct tree *t)
{
    int n = 0;
    for (int i = 0; i < t->high && n < WHOLE_MAX; i++) {
        if (!t->nodes[i].id.v || !(t->nodes[i].flags & TREE_SUBMITTED))
            continue;
        bytes_add(out, ",", n > 0);
        put_node(f, out, t, i);
        n++;
    }
}

static void put_submit(struct trace_form *f, struct bytes *out, const struct observation *o)
{
    const struct tree *t = o->tree;
    put(out,
        ",\n{\"ph\":\"i\",\"s\":\"t\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"name\":\"submit\",\"cat\":"
        "\"submit\","
        "\"args\":{\"rows\":%d,\"nodes\":%d,\"in_flight\":%d",
        o->role, us(o->begin_ns), o->rows, t ? t->count : 0, t ? t->submitted : 0);
    if (t && t->count && o->nodes) {
        put(out, ",\"request\":%u,\"root\":%u,\"pos\":%" PRId32 ",\"sent\":[", o->request,
            t->nodes[t->root].id.v, t->nodes[t->root].pos);
        if (f->whole)
            put_whole(f, out, t);
        else
            for (int i = 0; i < o->rows; i++) {
                bytes_add(out, ",", i > 0);
                put_node(f, out, t, o->nodes[i]);
            }
        f->whole = false;
        put(out, "]");
    }
    put(out, "}}");
}

void trace_json(struct trace_form *f, struct bytes *out, const struct observation *o)
{
    static const char *const spans[] = {[OBS_BATCH] = "batch",
                                        [OBS_PREFILL] = "prefill",
                                        [OBS_HEAD] = "head",
                                        [OBS_DRAFT] = "draft",
                                        [OBS_STOPPED] = "stopped"};
    switch (o->type) {
    case OBS_LINK:
        if (f->links)
            put_link(f, out, o);
        break;
    case OBS_ADVANCE:
        put_advance(f, out, o);
        break;
    case OBS_SUBMIT:
        put_submit(f, out, o);
        break;
    default:
        put_span(out, o, spans[o->type]);
    }
}

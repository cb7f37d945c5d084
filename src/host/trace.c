/* Trace files and tree dumps. */
#include "host/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { LINK_TRACK = 1000 }; /* track of the hop out of role r: LINK_TRACK + r */

struct trace {
    FILE *f;
    char *path;
    int n_stages;
    bool first, failed;
    uint64_t links; /* transfers written: their ids */
    pthread_mutex_t lock;
};

/* One event; called with the lock held. `fmt` gives what follows the comma. */
static void PD_PRINTF(2, 3) put(struct trace *t, const char *fmt, ...)
{
    fputs(t->first ? "[\n" : ",\n", t->f);
    t->first = false;
    va_list args;
    va_start(args, fmt);
    if (vfprintf(t->f, fmt, args) < 0)
        t->failed = true;
    va_end(args);
}

static void name_track(struct trace *t, int track, const char *name)
{
    put(t, "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}", track,
        name);
    put(t, "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%d}}",
        track, track);
}

enum pd_status trace_open(struct trace **out, const char *path, int n_stages, struct pd_error *err)
{
    *out = NULL;
    FILE *f = fopen(path, "wb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    struct trace *t = mem_new(1, sizeof *t);
    *t = (struct trace){.f = f, .path = mem_strdup(path), .n_stages = n_stages, .first = true};
    pthread_mutex_init(&t->lock, NULL);
    put(t, "{\"ph\":\"M\",\"pid\":1,\"tid\":0,\"name\":\"process_name\",\"args\":{\"name\":\"pipedec\"}}");
    name_track(t, ROLE_DRAFTER, "drafter");
    for (int i = 0; i < n_stages; i++) {
        char name[32];
        snprintf(name, sizeof name, "stage %d", i);
        name_track(t, role_stage(i), name);
    }
    name_track(t, role_verifier(n_stages), "verifier");
    *out = t;
    return PD_OK;
}

static double us(int64_t ns)
{
    return (double)ns / 1e3;
}

static void put_span(struct trace *t, const struct observation *o, const char *name)
{
    put(t,
        "{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s\",\"cat\":\"%s\","
        "\"args\":{\"rows\":%d,\"rows_live\":%d,\"rows_dead\":%d}}",
        o->role, us(o->begin_ns), us(o->end_ns - o->begin_ns), name, name, o->rows, o->rows_live,
        o->rows - o->rows_live);
}

/* Transfers of one hop may overlap (latency beside bandwidth), so they are asynchronous events, not spans. */
static void put_link(struct trace *t, const struct observation *o)
{
    uint64_t id = ++t->links;
    put(t,
        "{\"ph\":\"b\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"id\":%" PRIu64
        ",\"name\":\"hop %d-%d\",\"cat\":\"link\",\"args\":{\"rows\":%d}}",
        LINK_TRACK + o->role, us(o->begin_ns), id, o->role, o->to, o->rows);
    put(t,
        "{\"ph\":\"e\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"id\":%" PRIu64
        ",\"name\":\"hop %d-%d\",\"cat\":\"link\"}",
        LINK_TRACK + o->role, us(o->end_ns), id, o->role, o->to);
}

static const char *verdict_name(enum tree_verdict v)
{
    static const char *const names[] = {"hit", "late hit", "miss", "last"};
    return names[v];
}

static void put_advance(struct trace *t, const struct observation *o)
{
    put(t,
        "{\"ph\":\"i\",\"s\":\"p\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"name\":\"%s\",\"cat\":\"advance\","
        "\"args\":{\"token\":%" PRId32 ",\"pos\":%" PRId32 "}}",
        role_verifier(t->n_stages), us(o->begin_ns), verdict_name(o->verdict), o->token, o->pos);
}

static void put_submit(struct trace *t, const struct observation *o)
{
    put(t,
        "{\"ph\":\"i\",\"s\":\"t\",\"pid\":1,\"tid\":%d,\"ts\":%.3f,\"name\":\"submit\",\"cat\":\"submit\","
        "\"args\":{\"rows\":%d,\"nodes\":%d,\"in_flight\":%d}}",
        o->role, us(o->begin_ns), o->rows, o->tree ? o->tree->count : 0, o->tree ? o->tree->submitted : 0);
}

static void trace_see(void *user, const struct observation *o)
{
    struct trace *t = user;
    pthread_mutex_lock(&t->lock);
    switch (o->type) {
    case OBS_BATCH:
        put_span(t, o, "batch");
        break;
    case OBS_PREFILL:
        put_span(t, o, "prefill");
        break;
    case OBS_HEAD:
        put_span(t, o, "head");
        break;
    case OBS_DRAFT:
        put_span(t, o, "draft");
        break;
    case OBS_STOPPED:
        put_span(t, o, "stopped");
        break;
    case OBS_LINK:
        put_link(t, o);
        break;
    case OBS_ADVANCE:
        put_advance(t, o);
        break;
    case OBS_SUBMIT:
        put_submit(t, o);
        break;
    }
    pthread_mutex_unlock(&t->lock);
}

struct observer trace_observer(struct trace *t)
{
    return (struct observer){t, trace_see};
}

enum pd_status trace_close(struct trace *t, struct pd_error *err)
{
    if (!t)
        return PD_OK;
    errno = 0;
    fputs("\n]\n", t->f);
    bool failed = t->failed || ferror(t->f);
    failed = fclose(t->f) != 0 || failed;
    enum pd_status s = failed ? error_set(err, PD_ERR_FILE, "%s: the trace is not complete: %s", t->path,
                                          errno ? strerror(errno) : "write error")
                              : PD_OK;
    pthread_mutex_destroy(&t->lock);
    free(t->path);
    free(t);
    return s;
}

/* ---- tree dump ---- */

/* The token in quotes, control characters and quotes escaped, so that a node stays one line. */
static void print_token(struct tree_dump *d, int32_t token)
{
    char text[64];
    if (!d->piece) {
        fprintf(d->out, "%" PRId32, token);
        return;
    }
    size_t n = d->piece(d->piece_user, token, text, sizeof text);
    fputc('"', d->out);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            fprintf(d->out, "\\%c", c);
        else if (c < 32 || c == 127)
            fprintf(d->out, "\\x%02x", c);
        else
            fputc(c, d->out);
    }
    fputc('"', d->out);
}

static void print_node(struct tree_dump *d, const struct tree *t, int node, int depth)
{
    const struct tree_node *x = &t->nodes[node];
    const char *mark = node == t->root ? "*" : x->flags & TREE_SUBMITTED ? "+" : "-";
    fprintf(d->out, "%*s%s ", 2 * depth, "", mark);
    print_token(d, x->token);
    if (node == t->root)
        fprintf(d->out, " at %" PRId32, x->pos);
    else
        fprintf(d->out, " %.1f%%", 100 * exp((double)x->logp));
    fputs(x->flags & TREE_EXPANDED ? " expanded" : x->flags & TREE_DRAFTING ? " drafting" : "", d->out);
    fputc('\n', d->out);
}

/* The child of `node` with the lowest rank above `after`, or -1. */
static int next_child(const struct tree *t, int node, int after)
{
    int best = -1;
    for (int c = t->nodes[node].first_child; c >= 0; c = t->nodes[c].next_sibling)
        if (t->nodes[c].rank > after && (best < 0 || t->nodes[c].rank < t->nodes[best].rank))
            best = c;
    return best;
}

void tree_dump_print(struct tree_dump *d, const struct tree *t)
{
    int room = d->nodes_max ? d->nodes_max : 64, depth = 0, printed = 0;
    if (t->count == 0)
        return;
    int node = t->root;
    while (node >= 0 && printed < room) {
        print_node(d, t, node, depth);
        printed++;
        int next = next_child(t, node, -1);
        depth++;
        while (next < 0 && node != t->root) { /* up until there is another sibling */
            int parent = t->nodes[node].parent;
            next = next_child(t, parent, t->nodes[node].rank);
            node = parent;
            depth--;
        }
        node = next;
    }
    if (printed < t->count)
        fprintf(d->out, "  ... %d more\n", t->count - printed);
}

static void dump_see(void *user, const struct observation *o)
{
    struct tree_dump *d = user;
    if (o->type == OBS_ADVANCE) {
        fprintf(d->out, "%.1f ms: %s, next token ", (double)o->begin_ns / 1e6, verdict_name(o->verdict));
        print_token(d, o->token);
        fprintf(d->out, " at %" PRId32 "\n", o->pos);
    } else if (o->type == OBS_SUBMIT && o->tree) {
        fprintf(d->out, "step %d, %.1f ms: %d rows submitted; %d nodes, %d in flight\n", ++d->step,
                (double)o->begin_ns / 1e6, o->rows, o->tree->count, o->tree->submitted);
        tree_dump_print(d, o->tree);
    }
}

struct observer tree_dump_observer(struct tree_dump *d)
{
    return (struct observer){d, dump_see};
}

static void both_see(void *user, const struct observation *o)
{
    const struct observer_pair *p = user;
    if (p->a && p->a->see)
        p->a->see(p->a->user, o);
    if (p->b && p->b->see)
        p->b->see(p->b->user, o);
}

struct observer observer_both(struct observer_pair *pair)
{
    return (struct observer){pair, both_see};
}

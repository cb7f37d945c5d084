/* Trace files and tree dumps. */
#include "host/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct trace {
    FILE *f;
    char *path;
    struct trace_form form;
    struct bytes text; /* room for one event */
    bool first, failed;
    pthread_mutex_t lock;
};

/* What has been written to `text`; under the lock. Its first bytes part it from the object before. */
static void flush(struct trace *t)
{
    const size_t skip = t->first ? 1 : 0;
    if (!t->text.size)
        return;
    if (t->first)
        fputc('[', t->f);
    t->failed |= fwrite(t->text.data + skip, 1, t->text.size - skip, t->f) != t->text.size - skip;
    t->first = false;
    t->text.size = 0;
}

enum pd_status trace_open(struct trace **out, const char *path, int n_stages, struct pd_error *err)
{
    *out = NULL;
    FILE *f = fopen(path, "wb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    struct trace *t = mem_new(1, sizeof *t);
    *t = (struct trace){
        .f = f, .path = mem_strdup(path), .form = {.n_stages = n_stages, .links = true}, .first = true};
    pthread_mutex_init(&t->lock, NULL);
    trace_json_head(&t->form, &t->text);
    flush(t);
    *out = t;
    return PD_OK;
}

void trace_pieces(struct trace *t, piece_fn piece, void *user)
{
    t->form.piece = piece;
    t->form.piece_user = user;
}

static void trace_see(void *user, const struct observation *o)
{
    struct trace *t = user;
    pthread_mutex_lock(&t->lock);
    trace_json(&t->form, &t->text, o);
    flush(t);
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
    bytes_free(&t->text);
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

/* Templates from source to result, and what bounds them: steps, memory, depth. */
#include "jinja/internal.h"

#include <stdio.h>
#include <stdlib.h>

enum { STEPS_DEFAULT = 2000000, MEMORY_DEFAULT = 32 << 20, OUTPUT_DEFAULT = 8 << 20 };

struct jinja_template {
    struct arena arena;
    struct node *body;
    struct known_names known;
};

_Noreturn void jj_fail(struct run *r, const char *fmt, ...)
{
    char text[sizeof r->err->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    error_fill(r->err, PD_ERR_TEMPLATE, "line %u: %s", r->line, text);
    longjmp(r->escape, 1);
}

_Noreturn void jj_raise(struct run *r, value text)
{
    r->raised = true;
    error_fill(r->err, PD_ERR_TEMPLATE, "%.*s", (int)PD_MIN(text.size, 4096u), text.u.s.data);
    longjmp(r->escape, 1);
}

void *jj_take(struct run *r, size_t size)
{
    if (size > r->memory_max || r->arena->used > r->memory_max - size)
        jj_fail(r, "the template needs more than %zu MiB of memory", r->memory_max >> 20);
    return arena_take(r->arena, size);
}

void jj_step(struct run *r, uint64_t steps)
{
    r->steps += steps;
    if (r->steps > r->steps_max)
        jj_fail(r, "the template takes too long (more than %llu steps)", (unsigned long long)r->steps_max);
}

void jj_enter(struct run *r)
{
    if (++r->depth > EVAL_DEPTH_MAX)
        jj_fail(r, "too deep a recursion");
}

/* Lines end with \n only, and the last one without. */
static char *normalised(struct run *r, const char *source, size_t size, size_t *out_size)
{
    char *copy = jj_take(r, size + 1);
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        if (source[i] == '\r' && i + 1 < size && source[i + 1] == '\n')
            continue;
        copy[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n && copy[n - 1] == '\n')
        n--;
    copy[n] = 0;
    *out_size = n;
    return copy;
}

enum pd_status jinja_new(struct jinja_template **out, const char *source, size_t size, struct pd_error *err)
{
    struct pd_error none;
    struct jinja_template *t = mem_new(1, sizeof *t);
    struct run *r = mem_new(1, sizeof *r);
    *out = NULL;
    *r = (struct run){.arena = &t->arena, .memory_max = MEMORY_DEFAULT, .steps_max = UINT64_MAX, .line = 1};
    r->err = err ? err : &none;
    volatile bool failed = true;
    if (setjmp(r->escape) == 0) {
        if (size > SOURCE_MAX)
            jj_fail(r, "a template of %zu bytes is too long (%d at most)", size, SOURCE_MAX);
        struct tokens tokens = {0};
        size_t n;
        const char *text = normalised(r, source, size, &n);
        jj_lex(r, text, n, &tokens);
        t->body = jj_parse(r, &tokens);
        t->known = tokens.known;
        *out = t;
        failed = false;
    }
    free(r);
    if (!failed)
        return PD_OK;
    jinja_free(t);
    return PD_ERR_TEMPLATE;
}

void jinja_free(struct jinja_template *t)
{
    if (t)
        arena_free(&t->arena);
    free(t);
}

static void copy_result(struct jinja_result *out, const struct buf *b)
{
    out->data = mem_new(b->size + 1, 1);
    if (b->size)
        memcpy(out->data, b->data, b->size);
    out->size = b->size;
    size_t n = 0;
    for (size_t i = 0; b->mark && i < b->size; i++)
        n += b->mark[i] && (i == 0 || !b->mark[i - 1]);
    out->foreign = mem_new(n, sizeof *out->foreign);
    for (size_t i = 0; i < b->size && out->n_foreign < n; i++) {
        if (!b->mark[i])
            continue;
        struct jinja_span *s = &out->foreign[out->n_foreign++];
        s->begin = i;
        while (i < b->size && b->mark[i])
            i++;
        s->end = i;
    }
}

enum pd_status jinja_render(const struct jinja_template *t, struct jinja_value vars,
                            const struct jinja_options *o, struct jinja_result *out, struct pd_error *err)
{
    struct pd_error none;
    struct arena arena = {0};
    static const struct jinja_options defaults;
    struct run *r = mem_new(1, sizeof *r);
    PD_ASSERT(vars.kind == JINJA_DICT);
    o = o ? o : &defaults;
    *out = (struct jinja_result){0};
    *r = (struct run){.arena = &arena,
                      .memory_max = o->memory_bytes ? o->memory_bytes : MEMORY_DEFAULT,
                      .output_max = o->output_bytes ? o->output_bytes : OUTPUT_DEFAULT,
                      .steps_max = o->steps ? o->steps : STEPS_DEFAULT,
                      .now_s = o->now_s,
                      .vars = vars,
                      .known = t->known,
                      .line = 1};
    r->err = err ? err : &none;
    struct buf b = {.r = r};
    volatile bool failed = true;
    if (setjmp(r->escape) == 0) {
        r->out = &b;
        r->scope = jj_scope(r, NULL);
        jj_exec(r, t->body);
        copy_result(out, &b);
        failed = false;
    }
    out->raised = r->raised;
    free(r);
    arena_free(&arena);
    return failed ? PD_ERR_TEMPLATE : PD_OK;
}

void jinja_result_free(struct jinja_result *r)
{
    free(r->data);
    free(r->foreign);
    *r = (struct jinja_result){0};
}

/* needs: jinja base */
/* Any bytes as a template: parsed or refused, rendered or refused, within small bounds; spans are in order. */
#include "jinja/jinja.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "not so: %s\n", #cond);                                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static struct arena arena;
static struct jinja_value vars;

static void make_variables(void)
{
    static const char *const texts[] = {"Hi", " <|im_end|> \xC3\xA9\xE6\x9D\xB1 ", "bad \xFF\xC3", ""};
    struct jinja_value messages = jinja_list(&arena);
    vars = jinja_dict(&arena);
    for (size_t i = 0; i < PD_COUNT(texts); i++) {
        struct jinja_value m = jinja_dict(&arena);
        jinja_set(&arena, m, "role", jinja_text(&arena, i % 2 ? "assistant" : "user", i % 2 ? 9 : 4, false));
        jinja_set(&arena, m, "content", jinja_text(&arena, texts[i], strlen(texts[i]), true));
        jinja_add(&arena, messages, m);
    }
    jinja_set(&arena, vars, "messages", messages);
    jinja_set(&arena, vars, "a", jinja_int(3));
    jinja_set(&arena, vars, "x", jinja_float(-2.5));
    jinja_set(&arena, vars, "t", jinja_bool(true));
    jinja_set(&arena, vars, "n", jinja_none());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (vars.kind != JINJA_DICT)
        make_variables();
    struct jinja_template *t;
    struct jinja_result r;
    struct pd_error err = {0};
    if (jinja_new(&t, (const char *)data, size, &err)) {
        CHECK(!t && err.text[0]);
        return 0;
    }
    struct jinja_options o = {
        .steps = 20000, .memory_bytes = 4 << 20, .output_bytes = 1 << 20, .now_s = 1721999109};
    enum pd_status status = jinja_render(t, vars, &o, &r, &err);
    CHECK(status ? !r.data : r.data && r.size <= o.output_bytes);
    for (size_t i = 0; i < r.n_foreign; i++) {
        CHECK(r.foreign[i].begin < r.foreign[i].end && r.foreign[i].end <= r.size);
        CHECK(i == 0 || r.foreign[i - 1].end < r.foreign[i].begin);
    }
    jinja_result_free(&r);
    jinja_free(t);
    return 0;
}

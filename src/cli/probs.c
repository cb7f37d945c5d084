/* Log-probabilities of a reply's tokens: kept as they come, written as JSON at the end. */
#include "cli/cli.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

struct cli_prob {
    int32_t token;
    float logprob; /* NaN: not known */
    size_t n_top;
    struct pd_logprob top[LOGPROBS_MAX];
};

void cli_probs_add(struct cli_probs *p, const struct pd_event *event)
{
    if (event->type != PD_EVENT_TEXT || event->token < 0)
        return;
    if (p->n == p->room) {
        p->room = 2 * p->room + 64;
        p->list = realloc(p->list, p->room * sizeof *p->list);
        PD_ASSERT(p->list);
    }
    struct cli_prob *at = &p->list[p->n++];
    *at = (struct cli_prob){.token = event->token, .logprob = event->logprob, .n_top = event->n_top};
    if (event->n_top)
        memcpy(at->top, event->top, event->n_top * sizeof *at->top);
}

void cli_probs_free(struct cli_probs *p)
{
    free(p->list);
    p->list = NULL;
    p->n = p->room = 0;
}

/* A piece that is no text by itself, a part of a character, is written as its bytes. */
static void add_token(yyjson_mut_doc *doc, yyjson_mut_val *object, const struct pd_engine *e, int32_t token)
{
    size_t size;
    const char *piece = engine_piece(e, token, &size);
    yyjson_mut_obj_add_int(doc, object, "id", token);
    if (utf8_valid(piece, size)) {
        yyjson_mut_obj_add_strncpy(doc, object, "text", piece, size);
        return;
    }
    yyjson_mut_val *bytes = yyjson_mut_obj_add_arr(doc, object, "bytes");
    for (size_t i = 0; i < size; i++)
        yyjson_mut_arr_add_int(doc, bytes, (unsigned char)piece[i]);
}

/* As many digits as tell the float. */
static void add_logprob(yyjson_mut_doc *doc, yyjson_mut_val *object, float logprob)
{
    char digits[32];
    if (!isfinite(logprob)) {
        yyjson_mut_obj_add_null(doc, object, "logprob");
        return;
    }
    snprintf(digits, sizeof digits, "%.9g", (double)logprob);
    yyjson_mut_obj_add_real(doc, object, "logprob", strtod(digits, NULL));
}

void cli_probs_json(const struct cli_probs *p, const struct pd_engine *e, yyjson_mut_doc *doc,
                    yyjson_mut_val *root)
{
    yyjson_mut_val *all = yyjson_mut_obj_add_arr(doc, root, "logprobs");
    for (size_t i = 0; i < p->n; i++) {
        const struct cli_prob *at = &p->list[i];
        yyjson_mut_val *object = yyjson_mut_arr_add_obj(doc, all);
        add_token(doc, object, e, at->token);
        add_logprob(doc, object, at->logprob);
        yyjson_mut_val *top = yyjson_mut_obj_add_arr(doc, object, "top");
        for (size_t k = 0; k < at->n_top; k++) {
            yyjson_mut_val *other = yyjson_mut_arr_add_obj(doc, top);
            add_token(doc, other, e, at->top[k].token);
            add_logprob(doc, other, at->top[k].logprob);
        }
    }
}

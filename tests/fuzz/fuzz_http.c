/* needs: serve */
/* Bodies of HTTP requests: the first byte says which form, the rest is the body. Whatever comes, there is a status; a
 * request that was taken holds only what its limits allow. */
#include "serve/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(c) ((c) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c), abort()))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct api_request *r)
{
    CHECK(r->n >= 1 && r->n <= API_CHOICES && r->n_stop <= API_STOPS);
    CHECK(r->sampling.n_logit_bias <= API_BIASES && r->top_logprobs >= 0 && r->top_logprobs <= API_TOP);
    CHECK((size_t)r->n * (r->n_prompts ? r->n_prompts : 1) <= API_CHOICES);
    CHECK((r->form == API_CHAT) == (r->n_messages > 0) && (r->form == API_CHAT) == (r->n_prompts == 0));
    for (size_t i = 0; i < r->n_stop; i++)
        CHECK(r->stop[i][0]);
    for (size_t i = 0; i < r->n_messages; i++)
        CHECK(r->messages[i].role && r->messages[i].content);
    for (size_t i = 0; i < r->n_prompts; i++) {
        CHECK((r->prompts[i].text != NULL) != (r->prompts[i].n_tokens > 0));
        for (size_t k = 0; k < r->prompts[i].n_tokens; k++)
            CHECK(r->prompts[i].tokens[k] >= 0 && r->prompts[i].tokens[k] < 1000);
    }
    for (size_t i = 0; i < r->sampling.n_logit_bias; i++)
        CHECK(r->sampling.logit_bias[i].token >= 0 && r->sampling.logit_bias[i].token < 1000);
    CHECK(r->sampling.temperature >= 0 && r->sampling.top_p > 0 && r->sampling.top_k >= 0 &&
          r->max_tokens >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct api_defaults d = {.n_vocab = 1000};
    struct api_request r;
    struct pd_error err = {0};
    if (size == 0)
        return 0;
    d.sampling = (struct pd_sampling){.top_p = 1, .repeat_penalty = 1, .typical_p = 1};
    const enum pd_status status =
        api_parse(&r, (enum api_form)(data[0] % 3), (const char *)data + 1, size - 1, &d, &err);
    CHECK(status == PD_OK || err.text[0]);
    if (status == PD_OK) {
        check(&r);
        api_free(&r);
    }
    return 0;
}

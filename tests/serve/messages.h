/* One message of every type, with every field set: what tests of the protocol and the journal send round. */
#ifndef PD_TESTS_MESSAGES_H
#define PD_TESTS_MESSAGES_H

#include "serve/protocol.h"

#include <math.h>

static inline struct message message_example(int type)
{
    static const int32_t tokens[] = {1, 2, 300, 0, 2147483647};
    static const char *const stops[] = {"\n\n", "<|end|>"};
    static const struct pd_logit_bias bias[] = {{7, -INFINITY}, {9, 1.5f}};
    static const struct pd_logprob top[] = {{300, -0.25f}, {4, -3}, {1, -INFINITY}};
    struct message m = {.type = (enum message_type)type, .id = 0x123456789abcdefu};
    switch (type) {
    case MESSAGE_PROGRESS:
        m.progress.done = 3;
        m.progress.total = 1ll << 40;
        strcpy(m.progress.what, "loading");
        break;
    case MESSAGE_READY:
        m.ready = (struct message_ready){.model_name = "a model",
                                         .arch = "llama",
                                         .n_layer = 30,
                                         .n_vocab = 49152,
                                         .ctx = 4096,
                                         .ctx_train = 8192,
                                         .stages = 14,
                                         .threads = 2,
                                         .draft_threads = 1,
                                         .parallel = 8,
                                         .mode = PD_MODE_BEST,
                                         .weights_bytes = 1ull << 35,
                                         .identity = 3};
        break;
    case MESSAGE_REFUSED:
        m.refused = (struct pd_error){PD_ERR_FILE, "x.gguf: no such file"};
        break;
    case MESSAGE_TOKEN:
        m.token = (struct backend_token){.token = 300,
                                         .index = 5,
                                         .text = "a\0b",
                                         .text_size = 3,
                                         .logprob = -0.25f,
                                         .top = top,
                                         .n_top = PD_COUNT(top)};
        break;
    case MESSAGE_PROMPT:
        m.prompt.done = 64;
        m.prompt.total = 128;
        m.prompt.kept = 1;
        break;
    case MESSAGE_END:
        m.end = (struct message_end){.reason = PD_REASON_FAULT,
                                     .err = {PD_ERR_CONTEXT, "too long"},
                                     .stats = {.struct_size = sizeof m.end.stats,
                                               .prompt_tokens = 5,
                                               .tokens = 9,
                                               .total_s = 1.5,
                                               .rested = true,
                                               .undrafted = 1},
                                     .tail = "\xc3\xa9",
                                     .tail_size = 2,
                                     .at_ms = 1700000000000};
        break;
    case MESSAGE_STATS:
        m.stats = (struct message_stats){.uptime_s = 12.5,
                                         .rows = 100,
                                         .prompt_rows = 20,
                                         .batches = 50,
                                         .n_stages = 2,
                                         .stages = {{0.5, 9, 8}, {1, 7, 6}},
                                         .hits = 4,
                                         .late = 3,
                                         .misses = 2,
                                         .links = {{10, 20}, {30, 40}, {50, 60}}};
        break;
    case MESSAGE_REQUEST:
        m.request = (struct message_request){.r = {.name = "req-1",
                                                   .tokens = tokens,
                                                   .n_tokens = PD_COUNT(tokens),
                                                   .max_tokens = 12,
                                                   .stop = stops,
                                                   .n_stop = PD_COUNT(stops),
                                                   .ignore_end = true,
                                                   .logprobs = true,
                                                   .top_logprobs = 3,
                                                   .plain = true,
                                                   .note = "{\"chat\":true}"},
                                             .resume = tokens,
                                             .n_resume = 2};
        m.request.r.sampling = (struct pd_sampling){.temperature = 0.8f,
                                                    .top_k = 40,
                                                    .top_p = 0.9f,
                                                    .min_p = 0.1f,
                                                    .repeat_penalty = 1.1f,
                                                    .repeat_last_n = 64,
                                                    .seed = ~0ull,
                                                    .presence_penalty = 0.5f,
                                                    .frequency_penalty = -0.5f,
                                                    .top_n_sigma = 1.5f,
                                                    .typical_p = 0.8f,
                                                    .xtc_probability = 0.25f,
                                                    .xtc_threshold = 0.125f,
                                                    .dynatemp_range = 0.5f,
                                                    .dynatemp_exponent = 2,
                                                    .dry_multiplier = 0.75f,
                                                    .dry_base = 1.5f,
                                                    .dry_allowed_length = 3,
                                                    .dry_penalty_last_n = -1,
                                                    .dry_sequence_breakers = stops,
                                                    .n_dry_sequence_breakers = PD_COUNT(stops),
                                                    .logit_bias = bias,
                                                    .n_logit_bias = PD_COUNT(bias)};
        break;
    case MESSAGE_TOKENS:
        m.tokens = (struct message_tokens){.identity = 77,
                                           .first = 3,
                                           .n = PD_COUNT(tokens),
                                           .tokens = tokens,
                                           .text = "some text",
                                           .text_size = 9};
        break;
    case MESSAGE_WATCH:
        m.watch = true;
        break;
    case MESSAGE_EVENTS:
        m.events.text = ",\n{\"ph\":\"i\"}";
        m.events.size = 12;
        break;
    default:
        break;
    }
    return m;
}

#endif

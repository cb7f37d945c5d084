/* calls: tool calls and reasoning in what a model writes, taken apart while it comes. Pure.
 *
 *     family    a call looks like
 *     hermes    <tool_call>{"name": "f", "arguments": {...}}</tool_call>                              (Hermes, Qwen)
 *     llama     {"name": "f", "parameters": {...}}, as all of a reply or behind <|python_tag|>        (Llama 3)
 *     mistral   [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...], or [TOOL_CALLS]f[ARGS]{...}
 *     harmony   <|channel|>commentary to=functions.f<|message|>{...}<|call|>; all of a reply is in channels    (gpt-oss)
 *     deepseek  <|tool_calls_begin|><|tool_call_begin|>f<|tool_sep|>{...}<|tool_call_end|> ... <|tool_calls_end|>, or
 *               ...begin|>function<|tool_sep|>f, a line ```json and the arguments; bars and low lines as DeepSeek has them
 *
 * A call is one once its name and the beginning of its arguments are there; what only looks like one is text. So nothing is
 * held back but the beginning of a marker, of a call's head, and blanks, which belong to the text only if more of it comes.
 * Reasoning stands between <think> and </think> at the very beginning; of harmony it is the channel "analysis".
 *
 * What is given out does not depend on how the text was cut into pieces, but for the pieces themselves: two calls of the
 * sink of one kind in a row are one.
 *
 *     c = calls_new(&options, &sink);
 *     calls_push(c, text, size);  ...  calls_finish(c);
 *     calls_free(c);
 *
 * Ownership: options are copied; what the sink gets is valid for the call. Threading: none of its own. No errors: any bytes
 * are some text. Memory: what is held back, CALLS_HEAD_MAX bytes and the blanks at the end at most.
 */
#ifndef PD_CALLS_H
#define PD_CALLS_H

#include "base/base.h"

enum { CALLS_NAME_MAX = 128, CALLS_HEAD_MAX = 16 << 10 };

enum calls_family {
    CALLS_NONE,
    CALLS_HERMES,
    CALLS_LLAMA,
    CALLS_MISTRAL,
    CALLS_HARMONY,
    CALLS_DEEPSEEK,
    CALLS_FAMILIES
};
const char *calls_family_name(enum calls_family f); /* static */
/* By the text of a chat template; CALLS_NONE: it is of none that is known. */
enum calls_family calls_family_of(const char *chat_template);
/* Does the template know reasoning? */
bool calls_reasons(const char *chat_template);
/* Does this name of a control token belong to the text, as a marker? */
bool calls_is_marker(enum calls_family f, bool reasoning, const char *name, size_t size);
/* Does the prompt end within <think>, so that the reply begins there? */
bool calls_prompt_reasons(const char *prompt, size_t size);

struct calls_options {
    enum calls_family family; /* CALLS_NONE: no calls are looked for */
    const char *const *names; /* [n_names] what may be called: without a marker nothing else is a call */
    size_t n_names;
    bool reasoning; /* it is looked for, and ... */
    bool reasons;   /* ... the text begins within it */
};

enum calls_piece {
    CALLS_TEXT,
    CALLS_REASONING,
    CALLS_NAME,      /* a call begins: its name, whole */
    CALLS_ARGUMENTS, /* JSON, in pieces; all of a call's are one object */
    CALLS_END        /* the call is whole; a call that is cut off has none */
};
struct calls_sink {
    void *user;
    void (*piece)(void *user, enum calls_piece what, const char *data, size_t size);
};

struct calls;
struct calls *calls_new(const struct calls_options *o, const struct calls_sink *sink);
void calls_push(struct calls *c, const char *data, size_t size);
void calls_finish(struct calls *c); /* no more comes: what is held back is given out */
void calls_free(struct calls *c);   /* NULL is fine */

#endif

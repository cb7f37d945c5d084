/* Chat templates: one table of what each family writes around messages, and one function that applies it. */
#include "text/internal.h"

#include <string.h>

struct template
{
    const char *name;
    const char *default_system;           /* NULL: no system message unless asked for */
    const char *system_open;              /* NULL: the system text goes into the first user message, ... */
    const char *system_close;             /* ... */
    const char *merge_open, *merge_close; /* ... between these */
    const char *user_open, *user_close;
    const char *user_again; /* user_open for all but the first, NULL: the same */
    const char *generate;   /* opens a reply to be generated */
    const char *reply_open; /* opens a reply that is there, NULL: as generate */
    const char *before_end, *end, *after_end;
    bool trim; /* blanks around contents go */
};

#define CHATML                                                                                               \
    .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n",                                   \
    .user_open = "<|im_start|>user\n", .user_close = "<|im_end|>\n", .generate = "<|im_start|>assistant\n",  \
    .end = "<|im_end|>", .after_end = "\n"

#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3                                                                                               \
    .system_close = "<|eot_id|>", .user_open = LLAMA3_HEADER("user"), .user_close = "<|eot_id|>",            \
    .generate = LLAMA3_HEADER("assistant"), .end = "<|eot_id|>", .trim = true

static const struct template templates[CHAT_FAMILY_COUNT] = {
    [CHAT_CHATML] = {.name = "chatml", CHATML},
    [CHAT_QWEN2] = {.name = "qwen2", .default_system = "You are a helpful assistant.", CHATML},
    [CHAT_QWEN25] = {.name = "qwen2.5",
                     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
                     CHATML},
    [CHAT_SMOLLM2] = {.name = "smollm2",
                      .default_system =
                          "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
                      CHATML},
    [CHAT_LLAMA2] = {.name = "llama-2",
                     .merge_open = "<<SYS>>\n",
                     .merge_close = "\n<</SYS>>\n\n",
                     .user_open = "[INST] ",
                     .user_again = "<s>[INST] ", /* each exchange is a sequence of its own */
                     .user_close = " [/INST]",
                     .reply_open = " ",
                     .before_end = " ",
                     .end = "</s>",
                     .trim = true},
    [CHAT_LLAMA3] = {.name = "llama-3", .system_open = LLAMA3_HEADER("system"), LLAMA3},
    /* From 3.1 on there is always a system message with dates; today's is the template's own fallback, so that a
     * prompt is the same tomorrow. */
    [CHAT_LLAMA31] = {.name = "llama-3.1",
                      .default_system = "",
                      .system_open = LLAMA3_HEADER("system") "Cutting Knowledge Date: December 2023\n"
                                                             "Today Date: 26 Jul 2024\n\n",
                      LLAMA3},
    [CHAT_MISTRAL] = {.name = "mistral",
                      .merge_close = "\n\n",
                      .user_open = "[INST] ",
                      .user_close = " [/INST]",
                      .end = "</s>"},
    [CHAT_MISTRAL_V1] = {.name = "mistral-v1",
                         .merge_close = "\n\n",
                         .user_open = " [INST] ",
                         .user_close = " [/INST]",
                         .reply_open = " ",
                         .end = "</s>"},
    [CHAT_MISTRAL_V3] = {.name = "mistral-v3",
                         .merge_close = "\n\n",
                         .user_open = "[INST] ",
                         .user_close = "[/INST]",
                         .reply_open = " ",
                         .end = "</s>"},
    [CHAT_MISTRAL_V3_TEKKEN] = {.name = "mistral-v3-tekken",
                                .merge_close = "\n\n",
                                .user_open = "[INST]",
                                .user_close = "[/INST]",
                                .end = "</s>"},
    [CHAT_MISTRAL_V7] = {.name = "mistral-v7",
                         .system_open = "[SYSTEM_PROMPT] ",
                         .system_close = "[/SYSTEM_PROMPT]",
                         .user_open = "[INST] ",
                         .user_close = "[/INST]",
                         .reply_open = " ",
                         .end = "</s>"},
    [CHAT_GEMMA] = {.name = "gemma",
                    .merge_close = "\n\n",
                    .user_open = "<start_of_turn>user\n",
                    .user_close = "<end_of_turn>\n",
                    .generate = "<start_of_turn>model\n",
                    .end = "<end_of_turn>",
                    .after_end = "\n",
                    .trim = true},
    [CHAT_ZEPHYR] = {.name = "zephyr",
                     .system_open = "<|system|>\n",
                     .system_close = "</s>\n",
                     .user_open = "<|user|>\n",
                     .user_close = "</s>\n",
                     .generate = "<|assistant|>\n",
                     .end = "</s>",
                     .after_end = "\n"},
    [CHAT_PHI3] = {.name = "phi-3",
                   .system_open = "<|system|>\n",
                   .system_close = "<|end|>\n",
                   .user_open = "<|user|>\n",
                   .user_close = "<|end|>\n",
                   .generate = "<|assistant|>\n",
                   .end = "<|end|>",
                   .after_end = "\n"},
};

const char *template_name(enum chat_family family)
{
    PD_ASSERT((unsigned)family < CHAT_FAMILY_COUNT);
    return templates[family].name;
}

const char *template_names(void)
{
    return "chatml, qwen2, qwen2.5, qwen3, smollm2, llama-2, llama-3, llama-3.1, mistral, mistral-v1, "
           "mistral-v3, "
           "mistral-v3-tekken, mistral-v7, gemma, zephyr, phi-3";
}

enum pd_status template_by_name(enum chat_family *out, const char *name, struct pd_error *err)
{
    for (int i = 0; i < CHAT_FAMILY_COUNT; i++)
        if (strcmp(templates[i].name, name) == 0) {
            *out = (enum chat_family)i;
            return PD_OK;
        }
    if (strcmp(name, "qwen3") == 0) { /* chatml, thinking left to the model */
        *out = CHAT_CHATML;
        return PD_OK;
    }
    return error_set(err, PD_ERR_TEMPLATE, "no chat template is called \"%.40s\" (known: %s)", name,
                     template_names());
}

/* ---- detection ---- */

#define HAS(part) (strstr(text, part) != NULL)

/* The system prompt that a chatml template writes by itself decides which one it is. It stands as a literal between
 * the opening and the end token; the opening before a variable is followed by a quote. */
static int detect_chatml(const char *text)
{
    static const char open[] = "<|im_start|>system\\n", plain[] = "<|im_start|>system\n";
    if (HAS("<|im_sep|>") || HAS("## Metadata"))
        return -1; /* phi-4, SmolLM3: they share little but the token */
    for (const char *at = text; (at = strstr(at, "<|im_start|>system")); at++) {
        const char *literal = strncmp(at, open, sizeof open - 1) == 0     ? at + sizeof open - 1
                              : strncmp(at, plain, sizeof plain - 1) == 0 ? at + sizeof plain - 1
                                                                          : at;
        if (literal == at || *literal == '\'' || *literal == '"' || *literal == '{')
            continue;
        for (int i = 0; i < CHAT_FAMILY_COUNT; i++) {
            const char *known = templates[i].default_system;
            if (known && *known && strncmp(literal, known, strlen(known)) == 0 &&
                strncmp(literal + strlen(known), "<|im_end|>", 10) == 0)
                return i;
        }
        return -1; /* a system prompt that we don't know */
    }
    /* Qwen2.5 keeps its prompt apart from the tokens when tools are spoken of; the plain branch was seen above. */
    return HAS("<|im_end|>") ? CHAT_CHATML : -1;
}

static int detect_mistral(const char *text)
{
    if (HAS("[SYSTEM_PROMPT]"))
        return HAS("[SYSTEM_PROMPT] ") && !HAS("default_system_message") ? CHAT_MISTRAL_V7 : -1;
    if (HAS("<<SYS>>"))
        return CHAT_LLAMA2;
    if (HAS("' [INST] '") || HAS("\" [INST] \""))
        return CHAT_MISTRAL_V1;
    if (HAS("\"[INST]\"") || HAS("'[INST]'"))
        return CHAT_MISTRAL_V3_TEKKEN;
    if (HAS("'[INST] '") || HAS("\"[INST] \"")) {
        if (HAS("' [/INST]'") || HAS("\" [/INST]\""))
            return CHAT_MISTRAL;
        return HAS("[/INST]") ? CHAT_MISTRAL_V3 : -1;
    }
    return -1;
}

/* "<|user|>" and "<|assistant|>" are common: what closes a user's message tells the family. */
static int detect_user_assistant(const char *text)
{
    const char *user = strstr(text, "<|user|>");
    const char *close = user ? strstr(user, "%}") : NULL;
    size_t size = close ? (size_t)(close - user) : user ? strlen(user) : 0;
    if (!user || !HAS("<|assistant|>"))
        return -1;
    if (HAS("<|end|>"))
        return memmem(user, size, "<|end|>", 7) ? CHAT_PHI3 : -1;
    return memmem(user, size, "eos_token", 9) || memmem(user, size, "</s>", 4) ? CHAT_ZEPHYR : -1;
}

enum pd_status template_detect(enum chat_family *out, const char *text, struct pd_error *err)
{
    int family = -1;
    if (!text || !*text)
        return error_set(err, PD_ERR_TEMPLATE,
                         "the model has no chat template (choose one with --chat-template: %s)",
                         template_names());
    if (HAS("<|im_start|>"))
        family = detect_chatml(text);
    else if (HAS("<|start_header_id|>") && HAS("<|eot_id|>"))
        family = HAS("Cutting Knowledge Date") ? CHAT_LLAMA31 : CHAT_LLAMA3;
    else if (HAS("<start_of_turn>") && HAS("<end_of_turn>"))
        family = CHAT_GEMMA;
    else if (HAS("[INST]"))
        family = detect_mistral(text);
    else
        family = detect_user_assistant(text);
    if (family < 0)
        return error_set(
            err, PD_ERR_TEMPLATE,
            "the model's chat template is of no known family (choose one with --chat-template: %s)",
            template_names());
    *out = (enum chat_family)family;
    return PD_OK;
}

/* ---- application ---- */

struct renderer {
    const struct template *t;
    struct text_buf *out;
    struct span_list *literal;
    struct pd_error *err;
    enum pd_status status; /* the first failure; then nothing more is written */
};

static void put(struct renderer *r, const char *text)
{
    if (!r->status && text)
        r->status = text_buf_add(r->out, text, strlen(text), r->err);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void put_content(struct renderer *r, const char *text)
{
    size_t size = strlen(text), begin = r->out->size;
    if (r->t->trim) {
        for (; size && is_blank(*text); text++)
            size--;
        for (; size && is_blank(text[size - 1]);)
            size--;
    }
    if (!r->status)
        r->status = text_buf_add(r->out, text, size, r->err);
    if (!r->status && r->literal)
        r->status = span_list_add(r->literal, begin, r->out->size, r->err);
}

static void put_system(struct renderer *r, const char *content)
{
    put(r, r->t->system_open);
    put_content(r, content);
    put(r, r->t->system_close);
}

static void put_end(struct renderer *r)
{
    put(r, r->t->before_end);
    put(r, r->t->end);
    put(r, r->t->after_end);
}

static bool is_role(const struct pd_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static void put_message(struct renderer *r, const struct pd_message *msgs, size_t i)
{
    const struct template *t = r->t;
    bool system_before = i > 0 && is_role(&msgs[i - 1], "system") && !t->system_open;
    if (system_before && !is_role(&msgs[i], "user")) {
        r->status = error_set(r->err, PD_ERR_TEMPLATE,
                              "message %zu: %s wants a user message after the system's", i, t->name);
    } else if (is_role(&msgs[i], "user")) {
        bool first = i == 0 || (system_before && i == 1);
        put(r, first || !t->user_again ? t->user_open : t->user_again);
        if (system_before) {
            put(r, t->merge_open);
            put_content(r, msgs[i - 1].content);
            put(r, t->merge_close);
        }
        put_content(r, msgs[i].content);
        put(r, t->user_close);
    } else if (is_role(&msgs[i], "assistant")) {
        put(r, t->reply_open ? t->reply_open : t->generate);
        put_content(r, msgs[i].content);
        put_end(r);
    } else if (is_role(&msgs[i], "system")) {
        if (t->system_open)
            put_system(r, msgs[i].content);
    } else {
        r->status = error_set(r->err, PD_ERR_TEMPLATE,
                              "message %zu: no role is called \"%.40s\" (known: system, user, assistant)", i,
                              msgs[i].role);
    }
}

enum pd_status template_apply(enum chat_family family, const struct chat_part *p, struct text_buf *out,
                              struct span_list *literal, struct pd_error *err)
{
    const struct pd_message *msgs = p->msgs;
    const struct template_options *o = p->o;
    const size_t n = p->n;
    PD_ASSERT((unsigned)family < CHAT_FAMILY_COUNT);
    const struct template *t = &templates[family];
    struct renderer r = {.t = t, .out = out, .literal = literal, .err = err};
    if (o->from == 0) {
        if (t->default_system && n > 0 && !is_role(&msgs[0], "system"))
            put_system(&r, t->default_system);
    } else if (o->after == TEMPLATE_AFTER_REPLY) {
        put(&r, t->after_end);
    } else if (o->after == TEMPLATE_AFTER_CUT) {
        put_end(&r);
    }
    for (size_t i = o->from; i < n && !r.status; i++)
        put_message(&r, msgs, i);
    if (!r.status && n > 0 && !t->system_open && is_role(&msgs[n - 1], "system"))
        r.status = error_set(err, PD_ERR_TEMPLATE, "message %zu: %s wants a user message after the system's",
                             n - 1, t->name);
    if (o->generate)
        put(&r, t->generate);
    return r.status;
}

/* grammar: which texts a reply may have. Pure.
 *
 * A grammar is a text in GBNF, as llama.cpp writes it:
 *
 *     root  ::= "[" item ("," item)* "]"       # literals, groups, * + ? {m} {m,} {m,n}, comments
 *     item  ::= [0-9]{1,3} | name
 *     name  ::= [a-zéα-ω_] [^\x00-\x20"]*      # classes of Unicode characters; . is any character
 *
 * compiled to a pushdown automaton over bytes. It begins with the rule `root`. One line beyond GBNF, before the rules,
 *
 *     %after "<tool_call>"
 *
 * makes a lazy grammar: all is allowed until this text has appeared, and from there on the grammar holds to its end. A JSON
 * schema is turned into such a text (grammar_from_schema), so that one text is all that travels.
 *
 *     grammar_compile(&g, text, size, &err);                     once; PD_ERR_USAGE says what is wrong with it, and where
 *     vocab = grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = n, .token = look, .user = tokenizer});
 *     run = grammar_run_new(g, vocab);
 *     struct grammar_state s = grammar_start(run);
 *     const uint32_t *allowed = grammar_mask(run, s);            for sample_job.allowed
 *     s = grammar_advance(run, s, token);
 *     if (grammar_can_end(run, s)) ...
 *
 * A state is a set of stacks, named by a small number, the same for the same set: states are shared by all who have the
 * same run, and so is what is known of them (where bytes lead, which tokens are allowed). A run's memory is taken at its
 * start and bounded. When it is full it forgets all states but the one that it is asked about, and its generation goes up
 * (grammar_alive); whoever holds an older one gets it back from the tokens.
 *
 * Ownership: a run borrows grammar and vocabulary. Threading: grammar and vocabulary are read-only once made, any number of
 * threads may use them; a run belongs to one thread.
 */
#ifndef PD_GRAMMAR_H
#define PD_GRAMMAR_H

#include "base/base.h"

enum {
    GRAMMAR_TEXT_MAX = 256 << 10, /* bytes of a grammar's text, and of a schema */
    GRAMMAR_NODES_MAX = 1 << 18,  /* of the automaton */
    GRAMMAR_REPEAT_MAX = 10000,   /* {m,n} */
    GRAMMAR_NEST_MAX = 128,       /* groups within each other in the text; schemas too */
    GRAMMAR_MARKER_MAX = 128,     /* bytes of %after's text */
    /* while running; what would need more is not allowed there: the text stays within the grammar */
    GRAMMAR_DEPTH_MAX = 1024, /* rules within each other */
    GRAMMAR_STACKS_MAX = 2048 /* of one state: ways to read the same text */
};

/* ---- compiling ---- */

struct grammar;
/* PD_ERR_USAGE, with the line: syntax, a rule that is missing or defined twice, left recursion, a root that no text can
 * ever end. PD_ERR_UNSUPPORTED: larger than the limits. */
enum pd_status grammar_compile(struct grammar **out, const char *text, size_t size, struct pd_error *err);
void grammar_free(struct grammar *g);
const char *grammar_text(const struct grammar *g, size_t *size); /* NUL-terminated */

/* A JSON schema to a grammar's text, malloc'ed and NUL-terminated. JSON is written on one line, with ", " and ": " and no other
 * space between tokens; properties come in the order of the schema. PD_ERR_USAGE: it is not JSON, or contradicts itself;
 * PD_ERR_UNSUPPORTED: what cannot be kept to exactly. Both name the place ("/properties/a/not"). docs/grammar.md lists what
 * is supported. */
enum pd_status grammar_from_schema(char **out, const char *schema, size_t size, struct pd_error *err);
/* Any JSON value of type object; static. */
const char *grammar_json_object(void);

/* ---- the vocabulary ---- */

enum grammar_token_kind {
    GRAMMAR_TEXT,    /* stands for its bytes */
    GRAMMAR_CONTROL, /* not text: allowed before a lazy grammar's marker only; its bytes are its name */
    GRAMMAR_END,     /* ends a reply: allowed where the grammar may end */
    GRAMMAR_UNUSED   /* never allowed */
};
struct grammar_vocab_options {
    int n_vocab;
    /* The token's kind, and its bytes, which need not be NUL-terminated; they are read at once. */
    enum grammar_token_kind (*token)(void *user, int32_t id, const char **bytes, size_t *size);
    void *user;
};
struct grammar_vocab;
struct grammar_vocab *grammar_vocab_new(const struct grammar_vocab_options *o);
void grammar_vocab_free(struct grammar_vocab *v);

/* ---- running ---- */

struct grammar_run;
struct grammar_run *grammar_run_new(const struct grammar *g, const struct grammar_vocab *v);
void grammar_run_free(struct grammar_run *r);
const struct grammar *grammar_of(const struct grammar_run *r);

struct grammar_state {
    uint32_t id; /* 0: none */
    uint32_t generation;
};
struct grammar_state grammar_start(struct grammar_run *r);
/* False: forgotten; to be had again from the tokens. */
bool grammar_alive(const struct grammar_run *r, struct grammar_state s);
/* Nothing is allowed in it, not even an end: what came before was not allowed. */
bool grammar_dead(const struct grammar_run *r, struct grammar_state s);
/* May the text end here? */
bool grammar_can_end(const struct grammar_run *r, struct grammar_state s);
/* The text goes on with these bytes, or this token. An end token leaves the state as it is if the text may end, else the
 * state is dead; so it is after a token that is not allowed. `s` must be alive. */
struct grammar_state grammar_bytes(struct grammar_run *r, struct grammar_state s, const char *bytes,
                                   size_t size);
struct grammar_state grammar_advance(struct grammar_run *r, struct grammar_state s, int32_t token);
/* The state after tokens[n], from the start. */
struct grammar_state grammar_replay(struct grammar_run *r, const int32_t *tokens, size_t n);

/* [(n_vocab + 31) / 32] bit i % 32 of word i / 32: is token i allowed here? Good until the next call on this run. Where no
 * token is, end tokens are (a vocabulary may lack a byte): the text is cut there. */
const uint32_t *grammar_mask(struct grammar_run *r, struct grammar_state s);

/* What must come next, as far as it is known without any model. */
struct grammar_forced {
    int32_t token; /* -1: nothing is */
    bool only;     /* no other token is allowed; else other cuts of the same text into tokens are */
};
struct grammar_forced grammar_forced(struct grammar_run *r, struct grammar_state s);

/* ---- runs by their text, kept for the next request that has the same ---- */

struct grammar_pool;
struct grammar_pool *grammar_pool_new(void);
void grammar_pool_free(struct grammar_pool *p);
/* As many may be taken at once as there are requests; a few that nobody has are kept. Errors as of grammar_compile. */
enum pd_status grammar_pool_take(struct grammar_pool *p, struct grammar_run **out, const char *text,
                                 size_t size, const struct grammar_vocab *v, struct pd_error *err);
void grammar_pool_give(struct grammar_pool *p, struct grammar_run *r); /* NULL is fine */

#endif

/* DRY: tokens that would go on with a repetition are made less probable, more the longer it is.
 *
 * A history that ends in the n tokens that also stand before token t further up would be repeated for n + 1 tokens by
 * another t. How long the end of the history repeats at every place comes from the Z-algorithm on the history backwards,
 * in linear time whatever it holds. No repetition reaches across a sequence breaker. */
#include "sample/sample_impl.h"

#include <stdlib.h>
#include <string.h>

static int32_t window(const struct sample_job *j)
{
    const int32_t n = history_length(&j->history), last = j->sampling->dry_penalty_last_n;
    return last < 0 ? n : PD_MIN(n, last);
}

bool dry_applies(const struct sample_job *j)
{
    return j->sampling->dry_multiplier > 0 && window(j) > j->sampling->dry_allowed_length;
}

/* The token that stands `back` before the newest. */
static int32_t recent(const struct sample_job *j, int32_t back)
{
    return history_at(&j->history, history_length(&j->history) - 1 - back);
}

static int32_t *room(struct sample_scratch *s, int32_t n)
{
    if (n > s->repeats_room) {
        free(s->repeats);
        s->repeats_room = n + n / 2;
        s->repeats = mem_new((size_t)s->repeats_room, sizeof *s->repeats);
    }
    return s->repeats;
}

/* ---- breakers ---- */

/* The text of the newest tokens, as much of it as a breaker can take in, behind what comes next. */
struct tail {
    char text[DRY_BREAKER_BYTES];
    int32_t owner[DRY_BREAKER_BYTES]; /* tokens back, of each byte */
    int n;
};

static void tail_prepend(struct tail *t, char byte, int32_t owner)
{
    t->n = PD_MIN(t->n + 1, DRY_BREAKER_BYTES);
    memmove(t->text + 1, t->text, (size_t)t->n - 1);
    memmove(t->owner + 1, t->owner, ((size_t)t->n - 1) * sizeof *t->owner);
    t->text[0] = byte;
    t->owner[0] = owner;
}

/* Tokens behind the longest breaker that begins with the tail; -1: none does. */
static int32_t behind_breaker(const struct tail *t, const struct pd_sampling *p)
{
    int32_t behind = -1;
    for (size_t i = 0; i < p->n_dry_sequence_breakers; i++) {
        size_t size = strlen(p->dry_sequence_breakers[i]);
        if (size <= (size_t)t->n && memcmp(p->dry_sequence_breakers[i], t->text, size) == 0 &&
            (behind < 0 || t->owner[size - 1] < behind))
            behind = t->owner[size - 1];
    }
    return behind;
}

/* How many of the n newest tokens stand behind the newest breaker. */
static int32_t since_breaker(const struct sample_job *j, int32_t n)
{
    const struct sample_texts *texts = j->texts;
    struct tail tail = {.n = 0};
    if (!texts || !j->sampling->n_dry_sequence_breakers)
        return n;
    for (int32_t back = 0; back < n; back++) {
        const int32_t id = recent(j, back);
        if (id < 0 || id >= texts->n)
            continue;
        for (uint32_t at = texts->offset[id + 1]; at > texts->offset[id]; at--) {
            tail_prepend(&tail, texts->data[at - 1], back);
            int32_t behind = behind_breaker(&tail, j->sampling);
            if (behind >= 0)
                return behind;
        }
    }
    return n;
}

/* ---- repetitions ---- */

/* same[i]: how many tokens before and with the one `i` back are those at the end of the history, 1 <= i < n. */
static void repeated(const struct sample_job *j, int32_t n, int32_t *same)
{
    int32_t left = 0, right = 0; /* [left, right): the match found so far that reaches farthest */
    same[0] = n;
    for (int32_t i = 1; i < n; i++) {
        int32_t z = i < right ? PD_MIN(right - i, same[i - left]) : 0;
        while (i + z < n && recent(j, z) == recent(j, i + z))
            z++;
        same[i] = z;
        if (i + z > right) {
            left = i;
            right = i + z;
        }
    }
}

/* multiplier x base^n, finite, by products alone: the same on every machine. */
static float penalty(const struct pd_sampling *p, int32_t n)
{
    const float most = 1e30f;
    float value = p->dry_multiplier, base = p->dry_base;
    for (; n > 0 && value < most; n >>= 1) {
        if (n & 1)
            value = PD_MIN(value * base, most);
        base = PD_MIN(base * base, most);
    }
    return value;
}

void dry_penalty(const struct sample_job *j, struct sample_scratch *s)
{
    const struct pd_sampling *p = j->sampling;
    const int32_t n = window(j);
    int32_t *same = room(s, n), longest = 0;
    repeated(j, n, same);
    for (int32_t i = 1; i < n; i++)
        longest = PD_MAX(longest, same[i]);
    if (longest < p->dry_allowed_length)
        return;
    const int32_t most = since_breaker(j, longest);
    if (most < p->dry_allowed_length)
        return;
    const uint32_t stamp = sample_stamp(s);
    for (int32_t i = 1; i < n; i++) {
        const int32_t length = PD_MIN(same[i], most), id = recent(j, i - 1);
        if (length < p->dry_allowed_length || id < 0 || id >= s->n_vocab)
            continue;
        s->count[id] = s->stamp[id] == stamp ? PD_MAX(s->count[id], length) : length;
        s->stamp[id] = stamp;
    }
    for (int32_t i = 1; i < n; i++) {
        const int32_t id = recent(j, i - 1);
        if (id < 0 || id >= s->n_vocab || s->stamp[id] != stamp)
            continue;
        s->stamp[id] = 0; /* once */
        s->logits[id] -= penalty(p, s->count[id] - p->dry_allowed_length);
    }
}

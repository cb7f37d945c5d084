/* needs: wire base */
/* Any bytes as a message: refused, or valid, and then encoded and decoded to the same. */
#include "wire/wire.h"

#include <stdlib.h>
#include <string.h>

enum { EMBD = 33 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct row rows[2][BATCH_ROWS];
    static float hidden[2][BATCH_ROWS * EMBD];
    static struct pd_logit_bias bias[2][LOGIT_BIAS_MAX];
    static struct dry_room dry[2];
    static char grammar[2][GRAMMAR_TEXT_MAX];
    const struct wire_room room[2] = {{rows[0], hidden[0], bias[0], &dry[0], grammar[0]},
                                      {rows[1], hidden[1], bias[1], &dry[1], grammar[1]}};
    static uint8_t bytes[1 << 17];
    const struct wire_limits l = {.n_stages = 14, .n_embd = EMBD, .n_vocab = 1000, .ctx = 400};
    struct wire_head head;
    struct msg m, again;
    struct pd_error err = {0};
    struct note note;
    static uint8_t sealed[1 << 16];
    if (size <= sizeof sealed) { /* else the sum would keep all but a few inputs out */
        memcpy(sealed, data, size);
        wire_seal(sealed, size);
        data = sealed;
    }
    if (!note_decode(&note, data, size, &l, &err))
        PD_ASSERT(note_encode(bytes, sizeof bytes, &(struct wire_envelope){0}, &note) == size);
    if (wire_decode(&m, &room[0], data, size, &l, &err)) {
        if (!err.text[0])
            abort();
        return 0;
    }
    PD_ASSERT(!wire_peek(&head, data, size, &l, &err));
    size_t n = wire_encode(bytes, sizeof bytes, &head.envelope, &m, EMBD, WIRE_F32);
    PD_ASSERT(!wire_decode(&again, &room[1], bytes, n, &l, &err));
    PD_ASSERT(m.type == again.type && m.request == again.request);
    if (m.type == MSG_ROWS)
        PD_ASSERT(!memcmp(rows[0], rows[1], (size_t)m.rows.n * sizeof rows[0][0]));
    if (m.type == MSG_BEGIN) {
        PD_ASSERT(m.begin.sample.n_logit_bias == again.begin.sample.n_logit_bias);
        PD_ASSERT(!memcmp(bias[0], bias[1], m.begin.sample.n_logit_bias * sizeof bias[0][0]));
        again.begin.sample.logit_bias = m.begin.sample.logit_bias;
        PD_ASSERT(m.begin.sample.n_dry_sequence_breakers == again.begin.sample.n_dry_sequence_breakers);
        for (size_t i = 0; i < m.begin.sample.n_dry_sequence_breakers; i++)
            PD_ASSERT(!strcmp(dry[0].text[i], dry[1].text[i]));
        again.begin.sample.dry_sequence_breakers = m.begin.sample.dry_sequence_breakers;
    }
    if (m.type != MSG_ROWS)
        PD_ASSERT(!memcmp(&m, &again, sizeof m));
    return 0;
}

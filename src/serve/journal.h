/* serve/journal: what the backend wants to remember across the death of its own process: named requests, their tokens,
 * their ends. A folder with
 *
 *     journal   the records, appended
 *     lock      held (flock) by the process that uses the folder
 *     damaged   the newest journal that could not be read to its end, set aside
 *
 * The file begins with "PDJOURN1". A record is a u32 mark, u32 payload bytes, u32 CRC-32C over type and payload, u16 type, and
 * the payload: a message of protocol.h (REQUEST, TOKENS, END) that begins with the request's id. All numbers are
 * little-endian. Records of a request are in order; TOKENS carry the index of their first, and what does not go on from
 * the tokens before is left out (the engine computes it again).
 *
 * Writing: journal_add puts a record into a buffer; a thread of the journal's writes it and calls fdatasync, at once after
 * a pause, at most every JOURNAL_SYNC_MS under load. So a killed process loses that much at most, and so does a machine
 * without power. A disk that cannot be written to is told once, as a warning, and the requests go on without it.
 *
 * Reading: the last record may be torn (cut anywhere, or of damaged bytes and nothing behind it): it is dropped. Damage in
 * front of further records keeps what is before it, sets the file aside and says so in a line (LOG_ERROR).
 *
 * Threading: any thread; one journal_open at a time.
 */
#ifndef PD_SERVE_JOURNAL_H
#define PD_SERVE_JOURNAL_H

#include "serve/protocol.h"

enum { JOURNAL_SYNC_MS = 50 };

struct journal;
struct journal_read {     /* what is in a file's bytes */
    size_t records, used; /* bytes used, the header's included */
    bool damaged;         /* something follows that is no torn end */
};
typedef void (*journal_fn)(void *user, const struct message *m); /* m is valid for the call */

/* Calls fn for every record that is there, in order. The file stays as it is until journal_replace, which comes first.
 * PD_ERR_FILE: the folder cannot be used. PD_ERR_BUSY: another process uses it, and has for two
 * seconds. */
enum pd_status journal_open(struct journal **out, const char *folder, journal_fn fn, void *user,
                            struct pd_error *err);
void journal_add(struct journal *j, const struct message *m);
/* The whole contents, as journal_record made them, in the place of all before; takes `all` over. */
void journal_replace(struct journal *j, struct bytes *all);
void journal_record(struct bytes *out, const struct message *m);
/* Bytes of the file, those not written yet included. */
size_t journal_bytes(struct journal *j);
/* Writes and syncs what is left. NULL is fine. */
void journal_close(struct journal *j);

/* Records of a file's bytes; what is no journal at all: nothing used, damaged. Pure. */
struct journal_read journal_parse(const uint8_t *data, size_t size, journal_fn fn, void *user);

#endif

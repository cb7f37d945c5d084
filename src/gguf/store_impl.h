/* store_impl: what store.c (what to fetch, and from where) and store_set.c (folders, locks, room) share. */
#ifndef PD_GGUF_STORE_IMPL_H
#define PD_GGUF_STORE_IMPL_H

#include "gguf/store.h"

enum { STORE_PARTS = 4096, STORE_PATH = 4096 };
enum { STORE_HEADER_MAX = 1 << 29 }; /* bytes of a part's header */

struct held_tensor {
    bool held;
    uint64_t sum; /* gguf_tensor_digest of all bytes */
};

struct set {
    char *path; /* its folder; NULL: in memory */
    int lock;   /* its lock file; -1: none */
    bool writer;
    int *fd; /* [n_fd] its files, while it is written or in memory */
    size_t n_fd;
    struct gguf *file;
    char *file_path;
    uint64_t stamp;             /* of the source's file when this was fetched or compared */
    struct held_tensor *tensor; /* [n_tensors] NULL: nothing is known of them */
};

/* Sets of a model that can be used: whole header, a valid list. Others are removed unless somebody writes them. A new list
 * at *out, [return value]. */
int sets_find(struct set **out, const char *entry, const struct store_card *card);
void set_close(struct set *s);
/* An empty set, locked for writing, its files as large as the source's and open. In memory if `entry` is NULL. */
enum pd_status set_create(struct set *out, const char *entry, const struct store_card *card,
                          struct pd_error *err);
/* Become the only user, with the files open for writing; false: somebody else uses it, or it cannot be written. */
bool set_write(struct set *s, const struct store_card *card);
/* From writer to reader; its files are closed, unless they are memory. */
void set_share(struct set *s);
/* Open the header that has been written. PD_ERR_PEER if it is not the announced one. */
enum pd_status set_open(struct set *s, const struct store_card *card, struct pd_error *err);
/* Write the list of what is held. */
enum pd_status set_note(const struct set *s, const struct store_card *card, struct pd_error *err);
/* It is used now: others are removed before it. */
void set_touch(const struct set *s);
void set_remove(struct set *s); /* and close it; only a writer's */
/* Take room for these tensors' data. false: there is none. */
bool set_reserve(const struct set *s, const bool *wanted);
/* Give back the room of tensors that are not wanted, and note that. */
void set_punch(struct set *s, const struct store_card *card, const bool *wanted);

/* Remove sets of all models until the folder takes at most `limit` bytes and the disk has `room` free. */
void store_evict(const char *dir, uint64_t limit, uint64_t room);
/* Free bytes where `dir` is, and all of the disk's; false: not known. */
bool store_room(const char *dir, uint64_t *room, uint64_t *all);
bool make_folders(const char *path);

#endif

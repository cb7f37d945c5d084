/* mpi_supply_impl: the messages of mpi_supply.c, for it and for tests that send others. Bytes are in the machine's order, as
 * a card's are. */
#ifndef PD_HOST_MPI_SUPPLY_IMPL_H
#define PD_HOST_MPI_SUPPLY_IMPL_H

#include "host/mpi_impl.h"
#include "host/mpi_supply.h"

enum {
    SUPPLY_CHUNK = 1 << 20, /* of data in an answer */
    SUPPLY_WINDOW = 4,      /* questions that a rank has open */
    SUPPLY_FLIGHT = 8,  /* answers that rank 0 has under way: signs of life must not wait long behind them */
    SUPPLY_LIST = 1024, /* tensors in a question */
    SUPPLY_TEXT = 400
};

/* From rank 0, first: of the file, behind it its parts. */
struct supply_offer {
    uint64_t digest, stamp;
    uint32_t n_parts, n_tensors;
};

enum supply_kind { ASK_BYTES = 1, ASK_SAMPLES, ASK_FULL, ASK_PLAN, ASK_DONE };
struct supply_ask { /* to rank 0 */
    uint32_t kind, part;
    uint64_t offset, size;     /* BYTES */
    uint64_t bytes, fetched;   /* PLAN: bytes that will be asked for; DONE: needed, and of them asked for */
    uint32_t n;                /* SAMPLES, FULL: tensors in the list; answered by their digests */
    int32_t status;            /* DONE */
    uint32_t memory, reserved; /* DONE: it is not kept on the disk */
    union {
        char text[SUPPLY_TEXT]; /* DONE: why the rank's own file is not used, or its error */
        uint32_t list[SUPPLY_LIST];
    };
};

#endif

/* needs: link wire */
/* The MPI link's conformance, one process a rank; started by test_mpi.sh. With an argument: burn nothing for so many
 * seconds, and print the processor time that idle polling took. */
#include "link/conformance.h"

#ifdef PD_HAVE_MPI

#include "link/link_mpi.h"

#include <sys/resource.h>

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void idle(struct link *l, double seconds)
{
    int64_t end = link_clock() + (int64_t)(seconds * 1e9);
    double before = cpu_seconds();
    while (link_clock() < end)
        CONFORM(!l->poll(l, end));
    double percent = 100 * (cpu_seconds() - before) / seconds, worst = 0;
    MPI_Allreduce(&percent, &worst, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    if (l->rank == 0)
        printf("%d ranks: idle, at most %.2f %% of a processor a rank\n", l->n_ranks, worst);
    CONFORM(worst < 30.0); /* 1 to 2 here; one that spins takes all of a core */
}

int main(int argc, char **argv)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int granted, n;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &granted);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    link_punctual();
    struct link_mpi_options o = {.lock = &lock, .spin_us = -1};
    o.limits = (struct wire_limits){.n_stages = n - 1, .n_embd = LINK_EMBD};
    o.comm = MPI_COMM_WORLD;
    o.tag[LINK_DATA] = 1;
    o.tag[LINK_CONTROL] = 2;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    struct link *l;
    link_mpi_new(&l, &o);
    if (argc > 1) {
        idle(l, atof(argv[1]));
    } else {
        link_all_to_all(l);
        MPI_Barrier(MPI_COMM_WORLD);
        link_ring_at_once(l);
        MPI_Barrier(MPI_COMM_WORLD);
        link_times_out(l);
        MPI_Barrier(MPI_COMM_WORLD);
        link_ring_one(l, LINK_LAPS);
    }
    link_mpi_flush(l, 5000000000);
    l->free(l);
    MPI_Finalize();
    return 0;
}

#else

int main(void)
{
    return 77;
}

#endif

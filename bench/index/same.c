/* Searches one image and prints the neighbours, so that instruction sets and processors can be held
 * against each other: the same image and queries must give the same lines everywhere.
 *
 *   SK_ISA=scalar SK_PROFILE=speed bench_same VECTORS QUERIES DIM IMAGE K EF
 *
 * VECTORS and QUERIES are raw little-endian float32; IMAGE is built where it is missing. One line a
 * query: its rows, best first. The kernels' name goes to stderr. */
#include "bench/node/block.h"
#include "bench/node/floor_index.h"

#include <stdio.h>
#include <stdlib.h>

enum { HITS_MAX = 100 };

int main(int argc, char **argv)
{
    static struct sk_floor_index index;
    struct sk_floor_hit hits[HITS_MAX];
    struct sk_queries queries;
    if (argc != 7) {
        fprintf(stderr, "usage: bench_same VECTORS QUERIES DIM IMAGE K EF\n");
        return 2;
    }
    uint32_t dim = (uint32_t)strtoul(argv[3], NULL, 10), k = (uint32_t)strtoul(argv[5], NULL, 10),
             ef = (uint32_t)strtoul(argv[6], NULL, 10);
    if (dim == 0 || k == 0 || k > HITS_MAX) {
        fprintf(stderr, "bench_same: want DIM above 0 and K 1..%d\n", HITS_MAX);
        return 2;
    }
    sk_queries_load(&queries, argv[2], dim);
    sk_floor_index_open(&index, argv[1], dim, 16, 200, argv[4]);
    struct sk_index_stats stats;
    sk_index_get_stats(index.index, &stats);
    fprintf(stderr, "%s\n", stats.isa);
    for (size_t at = 0; at < queries.count; at++) {
        uint32_t count = sk_floor_index_search(&index, queries.values + at * dim, k, ef, hits);
        for (uint32_t i = 0; i < count; i++)
            printf(i == 0 ? "%u" : " %u", hits[i].row);
        printf("\n");
    }
    return 0;
}

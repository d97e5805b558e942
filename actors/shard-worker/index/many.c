/* Many searches of one thread. */
#include "actors/shard-worker/index/internal.h"

enum sk_err sk_index_search_many(const struct sk_index *self, struct sk_index_reader *reader,
                                 const struct sk_index_query *queries,
                                 struct sk_index_result *results, enum sk_err *rcs, uint32_t count,
                                 struct sk_diag *d)
{
    enum sk_err first = SK_ERR_OK;
    for (uint32_t i = 0; i < count; i++) {
        struct sk_diag own = {0};
        rcs[i] = sk_index_search(self, reader, &queries[i], &results[i], &own);
        if (rcs[i] != SK_ERR_OK && first == SK_ERR_OK) {
            first = rcs[i];
            if (d != NULL)
                *d = own;
        }
    }
    return first;
}

/* Graves: what the writer has taken away waits here until no read that may hold it is running. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>

static void grave_put(struct shard *shard, struct sk_pending_chunk *chunk, struct sk_index *index)
{
    struct grave *grave = calloc(1, sizeof *grave);
    SK_CHECK(grave != NULL); /* a few bytes; without them nothing can be freed safely */
    *grave = (struct grave){
        .next = shard->graves, .after = shard->read_next, .chunk = chunk, .index = index};
    shard->graves = grave;
}

void grave_put_chunks(struct shard *shard, struct sk_pending_chunk *chunk)
{
    while (chunk != NULL) {
        struct sk_pending_chunk *next = chunk->retired_next;
        if (shard->running_first == NULL)
            sk_pending_chunk_free(chunk);
        else
            grave_put(shard, chunk, NULL);
        chunk = next;
    }
}

/* Jobs numbered from now on get no reader of it: idle ones lose theirs here, running ones when they have
 * ended (or when they search another index of the field). */
void grave_put_index(struct shard *shard, struct sk_index *index)
{
    for (struct reader *reader = shard->idle; reader != NULL; reader = reader->next)
        reader_drop_index(reader, index);
    grave_put(shard, NULL, index);
}

void graves_dig(struct shard *shard, bool is_all)
{
    uint64_t ended = reads_ended_below(shard);
    struct grave **at = &shard->graves;
    while (*at != NULL) {
        struct grave *grave = *at;
        if (!is_all && grave->after > ended) {
            at = &grave->next;
            continue;
        }
        *at = grave->next;
        sk_pending_chunk_free(grave->chunk);
        sk_index_destroy(&grave->index);
        free(grave);
    }
}

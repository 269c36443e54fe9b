/* test_placed_lock.c -- a lock in memory that it shares with other things is told from them. */
#include <errno.h>
#include <unistd.h>

#include "check.h"
#include "pyloop.h"

static struct pl_self *self;

static void test_place_tells_zeroes_a_lock_and_other_data(void)
{
    uint64_t memory[2] = {0}, *word = NULL, *again = NULL;
    CHECK(pl_lock_place(memory, PL_ATTACH, &word) == -ENOENT && !word && !memory[0]);
    CHECK(pl_lock_place(memory, PL_CREATE, &word) == 0 && word == memory + 1 && *word == 0);
    CHECK(pl_lock_acquire(self, word, 0) == 0);
    CHECK(pl_lock_place(memory, PL_CREATE, &again) == -EEXIST && !again);
    CHECK(pl_lock_place(memory, PL_ATTACH, &again) == 0 && again == word);
    CHECK(pl_lock_place(memory, PL_ATTACH_OR_CREATE, &again) == 0 && again == word);
    CHECK(pl_lock_owner(again) == getpid());
    uint64_t head = memory[0];
    for (int bit = 0; bit < 64; bit++)
        for (int create = PL_ATTACH; create <= PL_ATTACH_OR_CREATE; create++) {
            memory[0] = head ^ (UINT64_C(1) << bit);
            CHECK(pl_lock_place(memory, create, &again) == PL_E_FOREIGN);
        }
    memory[0] = memory[1] = 0;
    CHECK(pl_lock_place(memory, PL_ATTACH_OR_CREATE, &again) == 0 && memory[0] == head);
}

CHECK_MAIN(self = pl_self_new(); RUN(test_place_tells_zeroes_a_lock_and_other_data);
           pl_self_free(self);)

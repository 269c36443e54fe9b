/* test_table.c -- ids: found while their conn lives, stale afterwards, never reused. */
#include <errno.h>

#include "check.h"
#include "conn.h"
#include "table.h"

static void test_ids_find_their_conn_until_removed(void)
{
    struct table t = {0};
    struct conn conns[200];
    uint64_t ids[200];
    for (int i = 0; i < 200; i++) {
        CHECK(table_add(&t, &conns[i], &ids[i]) == 0);
        CHECK((uint32_t)ids[i] == (uint32_t)i && ids[i] >> 32 == 1);
    }
    for (int i = 0; i < 200; i++)
        CHECK(table_get(&t, ids[i]) == &conns[i]);
    for (int i = 0; i < 200; i += 2)
        table_remove(&t, ids[i]);
    for (int i = 0; i < 200; i++)
        CHECK(table_get(&t, ids[i]) == (i % 2 ? &conns[i] : NULL));
    CHECK(t.used == 100 && t.cap == 256);
    table_fini(&t);
}

static void test_slot_with_a_new_tenant_refuses_the_old_id(void)
{
    struct table t = {0};
    struct conn a, b;
    uint64_t old, new_;
    CHECK(table_add(&t, &a, &old) == 0);
    table_remove(&t, old);
    CHECK(table_add(&t, &b, &new_) == 0 && (uint32_t)new_ == (uint32_t)old && new_ != old);
    CHECK(!table_get(&t, old) && table_get(&t, new_) == &b);
    table_fini(&t);
}

static void test_generation_skips_zero_when_it_wraps(void)
{
    struct table t = {0};
    struct conn c;
    uint64_t id;
    CHECK(table_add(&t, &c, &id) == 0);
    t.slots[0].generation = UINT32_MAX;
    table_remove(&t, (uint64_t)UINT32_MAX << 32);
    CHECK(table_add(&t, &c, &id) == 0 && id >> 32 == 1 && table_get(&t, id) == &c);
    table_fini(&t);
}

static void test_invented_ids_find_nothing(void)
{
    struct table t = {0};
    struct conn c;
    uint64_t id;
    CHECK(!table_get(&t, 0) && !table_get(&t, UINT64_MAX));
    CHECK(table_add(&t, &c, &id) == 0);
    CHECK(!table_get(&t, 0) && !table_get(&t, id + 1) && !table_get(&t, id + ((uint64_t)1 << 32)));
    CHECK(!table_get(&t, UINT64_MAX) && !table_get(&t, id & UINT32_MAX));
    table_fini(&t);
}

static void test_short_memory_adds_nothing(void)
{
    struct table t = {0};
    struct conn c;
    uint64_t id, more;
    fail_alloc_after(0);
    CHECK(table_add(&t, &c, &id) == -ENOMEM && t.cap == 0);
    fail_alloc_never();
    CHECK(table_add(&t, &c, &id) == 0);
    for (int i = 1; i < 64; i++)
        CHECK(table_add(&t, &c, &more) == 0);
    fail_alloc_after(0);
    CHECK(table_add(&t, &c, &more) == -ENOMEM && t.used == 64);
    table_remove(&t, id);
    CHECK(table_add(&t, &c, &id) == 0); /* a free slot needs no memory */
    table_fini(&t);
}

CHECK_MAIN(RUN(test_ids_find_their_conn_until_removed);
           RUN(test_slot_with_a_new_tenant_refuses_the_old_id);
           RUN(test_generation_skips_zero_when_it_wraps);
           RUN(test_invented_ids_find_nothing);
           RUN(test_short_memory_adds_nothing);)

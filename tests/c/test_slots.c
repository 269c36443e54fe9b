/* test_slots.c -- what datagrams are received into: how much of it one socket gets, and what goes back. */
#include "slots.h"

#include <errno.h>

#include "check.h"

static void test_slots_are_given_away_from_the_front_until_none_fits(void)
{
    struct slots slots = {0};
    struct packet packets[PACKETS_MAX];
    CHECK(slots_init(&slots) == 0 && slots_init(&slots) == 0);
    CHECK(slots_offer(&slots, packets, 3, 65536) == 3);
    CHECK((uint8_t *)packets[0].addr == slots.memory + 4);
    CHECK(packets[0].data == slots.memory + PL_DATAGRAM_HEAD && packets[0].len == 65536);
    CHECK((uint8_t *)packets[1].addr > packets[0].data + 65535);
    CHECK(slots_offer(&slots, packets, PACKETS_MAX, 65536) == 34); /* half of it is one socket's */
    CHECK(slots_offer(&slots, packets, PACKETS_MAX, PL_DATAGRAM_MAX) == 8);
    int taken = 0;
    for (; slots_have_room(&slots) && taken < 100; taken++) {
        CHECK(slots_offer(&slots, packets, 1, PL_DATAGRAM_MAX) == 1);
        CHECK(packets[0].data + PL_DATAGRAM_MAX <= slots.memory + SLOTS_BYTES);
        slots_take(&slots, packets, 1, PL_DATAGRAM_MAX);
    }
    CHECK(taken == 17);
    slots_reset(&slots);
    CHECK(slots_have_room(&slots));
    slots_fini(&slots);
    fail_alloc_after(0);
    CHECK(slots_init(&slots) == -ENOMEM && slots_have_room(&slots));
}

static void test_slots_give_back_what_a_flood_has_touched(void)
{
    struct slots slots = {0};
    struct packet packets[PACKETS_MAX];
    CHECK(slots_init(&slots) == 0);
    for (int taken = 0; slots_have_room(&slots); taken++) {
        CHECK(taken < 100 && slots_offer(&slots, packets, 1, 65536) == 1);
        memset(packets[0].data, 'x', packets[0].len);
        packets[0].addr_len = 0;
        slots_take(&slots, packets, 1, 65536);
    }
    uint8_t *deep = slots.memory + 2 * SLOTS_KEPT_BYTES, *front = slots.memory + 2000;
    for (uint32_t i = 0; i <= SLOTS_CALM_TICKS; i++) {
        CHECK(*deep == 'x' && *front == 'x');
        slots_reset(&slots);
    }
    CHECK(*deep == 0 && *front == 'x' && slots.touched == 0);
    slots_fini(&slots);
}

CHECK_MAIN(RUN(test_slots_are_given_away_from_the_front_until_none_fits);
           RUN(test_slots_give_back_what_a_flood_has_touched);)

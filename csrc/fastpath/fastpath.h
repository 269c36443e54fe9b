/* fastpath.h -- what the files of pyloop._fastpath share: the module's state and the objects' layouts.
 *
 * CPython only, and optional: each object here is the twin of a Python class in pyloop/, which serves without it and
 * is called for whatever is rare (debug mode, hooks, errors). All state is the module's or the loop's. Whatever
 * touches a loop holds the GIL, except the one call of the core that waits. */
#ifndef PYLOOP_FASTPATH_H
#define PYLOOP_FASTPATH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "pyloop.h"
#include "pyloop_api.h"

/* The Python functions that serve when the C ones do not: Running's, by the names that they have there. */
enum twin {
    TWIN_CALL_SOON,
    TWIN_CALL_SOON_THREADSAFE,
    TWIN_CALL_LATER,
    TWIN_CALL_AT,
    TWIN_RUN_ONCE,
    TWIN_CREATE_TASK,   /* asyncio's */
    TWIN_REPORT_FAILED, /* (handle, exc) */
    TWIN_COUNT
};

/* Where asyncio.Handle keeps what, in bytes from the object's start. */
struct handle_places {
    Py_ssize_t context, loop, callback, args;
};

#ifdef __SANITIZE_ADDRESS__
#define FREE_HANDLES 1 /* as few as can be: whoever uses a handle that is gone is found out */
#else
#define FREE_HANDLES 1024
#endif

/* Objects of one type that wait to be used again. */
struct free_list {
    PyObject *items[FREE_HANDLES];
    int count;
};

struct state {
    const struct pl_api *api;
    PyTypeObject *Ready, *Handle, *TimerHandle, *Turn, *Walk, *ConnectionBase, *TransportBase,
        *Inbox, *Awaiting, *TLSTransportBase, *DatagramBase;
    struct handle_places handle;  /* in asyncio.Handle */
    PyObject *twins[TWIN_COUNT];  /* NULL before use_running */
    PyObject *deliver, *call_it, *feed_buffered; /* pyloop's functions, which the walk knows; NULL before use_core */
    PyObject *inbox_push;            /* Inbox.push, which the walk knows likewise */
    PyObject *inbox_type, *inbox_end; /* pyloop's Inbox, and what raises why one has ended; NULL before use_inbox */
    PyObject *tls_protocol, *tls_wrapped, *tls_again, *tls_failed; /* of tls_protocol.py; NULL before use_tls */
    PyObject *tls_connection, *tls_error, *encrypt_due; /* of tls.py; likewise */
    PyObject *null, *address_of;  /* ffi.NULL, and what tells the address of a loop; likewise */
    PyObject *loop_seen;          /* the loop that address_of was asked last, and what it said */
    struct pl_loop *core_seen;
    PyObject *empty_tuple, *empty_bytes, *any_size; /* the last is -1 */
    PyObject *context_seen; /* another string that says "context", of asyncio's C code */
    PyObject *Future, *tasks, *loop_names; /* asyncio's class and module, and the keyword that they want */
    PyObject *s_context, *s_task, *s_run, *s_time, *s_core, *s_fail, *s_gated, *s_message_received,
        *s_sent, *s_fatal_error, *s_join, *s_get_buffer, *s_buffer_updated, *s_received_eof,
        *s_send_other, *s_written, *s_write_other, *s_owner, *s_loop, *s_create_future, *s_done,
        *s_set_result, *s_pause, *s_resume, *s_inbox, *s_drained;
    PyObject *s_read, *s_write, *s_pending, *s_data_received, *s_call_soon, *s_owners,
        *s_accepted, *s_datagram_received, *s_unpack;
    /* of a TLSConnection */
    PyObject *s_ssl, *s_backlog, *s_due, *s_is_ready, *s_fed, *s_decrypted, *s_encrypt,
        *s_not_encrypted, *s_turn_ends;
    /* of asyncio's SSLProtocol */
    PyObject *s_state, *s_sslobj, *s_incoming, *s_outgoing, *s_transport, *s_app_protocol,
        *s_app_protocol_is_buffer, *s_app_reading_paused, *s_app_writing_paused,
        *s_ssl_reading_paused, *s_ssl_writing_paused, *s_ssl_protocol, *s_ssl_buffer_view,
        *s_write_backlog, *s_outgoing_high_water, *s_end_reading, *s_settle, *s_write_appdata;
    struct free_list handles, timers, awaitings;
};

#define RECORD_BYTES (16 * 1024) /* no record of TLS holds more plaintext: RFC 8446, 5.1 */

#define FAST(function) ((PyCFunction)(void (*)(void))(function)) /* METH_FASTCALL in a PyMethodDef */

extern PyMethodDef connection_methods[], transport_methods[], turn_methods[], datagram_methods[];
extern struct PyModuleDef fastpath_module;

static inline struct state *state_of(PyTypeObject *type) /* one of the module's own types, no subclass */
{
    return PyType_GetModuleState(type);
}

/* For who is let go: NULL when the module is garbage too, and gone first. */
static inline struct state *state_if_there(PyTypeObject *type)
{
    PyObject *module = ((PyHeapTypeObject *)type)->ht_module;
    return module ? PyModule_GetState(module) : NULL;
}

/* The same for any type that inherits from one; slower. */
struct state *state_find(PyTypeObject *type);

int ready_setup(PyObject *module, struct state *st); /* 0 or -1 */
int handle_setup(PyObject *module, struct state *st);
int turn_setup(PyObject *module, struct state *st);
int walk_setup(PyObject *module, struct state *st);
int endpoint_setup(PyObject *module, struct state *st);
int inbox_setup(PyObject *module, struct state *st);
int awaiting_setup(PyObject *module, struct state *st);
int tls_setup(PyObject *module, struct state *st);
int datagram_setup(PyObject *module, struct state *st);

PyObject *exception_take(void); /* the current one, normalized, with its traceback; no longer set */

/* ---- the ready queue ---- */

struct ready {
    PyObject head;
    struct state *st;
    PyObject **items; /* a ring of cap, a power of 2; NULL: nothing was ever appended */
    Py_ssize_t cap, first, count;
};

int ready_push(struct ready *r, PyObject *handle); /* takes a reference. 0 or -1 with MemoryError */
void ready_settle(struct ready *r);                /* another is scheduled: who got the last one has kept it or not */
PyObject *ready_pop(struct ready *r);              /* gives one; r is not empty. See handle_let_go */
void ready_trim(struct ready *r);                  /* let a large ring go that is empty */

/* ---- handles ---- */

struct handle_part { /* the end of a Handle and of a TimerHandle */
    char cancelled;
    struct state *st;
};

struct timer_part { /* the end of a TimerHandle */
    double when;
    uint64_t order; /* of equal times the lower is first */
    char scheduled; /* is it in the loop's heap? */
    struct handle_part handle;
};

static inline PyObject **handle_field(PyObject *handle, Py_ssize_t place)
{
    return (PyObject **)((char *)handle + place);
}

static inline struct handle_part *handle_part(PyObject *handle)
{
    char *end = (char *)handle + Py_TYPE(handle)->tp_basicsize;
    return (struct handle_part *)(end - sizeof(struct handle_part));
}

static inline struct timer_part *timer_part(PyObject *timer)
{
    char *end = (char *)timer + Py_TYPE(timer)->tp_basicsize;
    return (struct timer_part *)(end - sizeof(struct timer_part));
}

/* A new Handle or TimerHandle of `loop`. Borrows all; context NULL or None: a copy of the current one. */
PyObject *handle_new(struct state *st, PyTypeObject *type, PyObject *loop, PyObject *callback,
                     PyObject *const *args, Py_ssize_t count, PyObject *context);

int handle_traverse(PyObject *handle, visitproc visit, void *arg); /* of the types above */

/* Tell the collector of a Handle that is no longer the queue's alone: see ready.c. Others know how to be tracked. */
void handle_track(PyObject *handle);

static inline void handle_let_go(PyObject *handle) /* by the queue, or who ran it: maybe somebody has kept it */
{
    if (Py_REFCNT(handle) > 1)
        handle_track(handle);
    Py_DECREF(handle);
}

/* Call it in its context, unless it was cancelled. 0; -1: SystemExit, KeyboardInterrupt, or what the exception
 * handler raised. What the callback raised otherwise was reported. */
int handle_run(struct state *st, PyObject *handle);

/* Was it cancelled? Of any class. -1 on failure. */
int handle_is_cancelled(const struct state *st, PyObject *handle);

/* ---- the heap of timers: a list, the earliest first ---- */

int timers_push(const struct state *st, PyObject *list, PyObject *timer); /* 0 or -1 */
PyObject *timers_pop(const struct state *st, PyObject *list);             /* NULL on failure; list is not empty */
int timers_order(const struct state *st, PyObject *list);                 /* make it a heap: 0 or -1 */
Py_ssize_t timers_trim(const struct state *st, PyObject *list); /* take cancelled ones off its end */

int timer_when(const struct state *st, PyObject *timer, double *when); /* 0 or -1, as all that follow */
int timer_set_scheduled(const struct state *st, PyObject *timer, bool scheduled);
PyObject *timer_before(PyObject *self, PyObject *other); /* TimerHandle.__lt__ */

/* ---- connections and transports ---- */

/* Both have the same fields in the same places. What stands first are five of Connection's in the one, and in the
 * other the slots of asyncio's _FlowControlMixin, whose layout it continues. */
#define ENDPOINT_FIRST 5

struct endpoint {
    PyObject head;
    PyObject *first[ENDPOINT_FIRST];
    struct state *st;
    struct pl_loop *core; /* NULL when it is lost, or not yet there */
    PyObject *ptr;        /* the same as Python hands it to the core: a cdata */
    uint64_t id, write_id;
    int gate;             /* why messages are not delivered now: pyloop/inbox.py */
    PyObject *context, *call, *target; /* call(target, message) in context */
    PyObject *writable;                /* a Connection's: None or NULL unless output is over high water */
};

/* The loop that a cdata points to, in *core; NULL for ffi.NULL. 0 or -1. */
int core_of(struct state *st, PyObject *ptr, struct pl_loop **core);

/* What a `_ptr` gives, and what setting one does: to *place, and to *core. */
PyObject *core_ptr(const struct state *st, PyObject *ptr);
int core_set(struct state *st, PyObject *ptr, PyObject **place, struct pl_loop **core); /* 0 or -1 */

PyObject *transport_write_data(PyObject *transport, PyObject *data); /* its write() */

/* What write() was given, by place or by asyncio's name for it; borrowed. NULL with TypeError. */
PyObject *written_data(PyObject *const *args, Py_ssize_t count, PyObject *names);

/* ---- TLS ---- */

/* Ciphertext came. 0 or -1. */
int records_take(const struct state *st, PyObject *incoming, const void *data, Py_ssize_t len);

/* What the next record holds, up to `room` bytes, in *plain: empty if the peer has said that it ends (close_notify).
 * 1; 0: there is none now; -1. */
int records_read(const struct state *st, PyObject *tls, Py_ssize_t room, PyObject **plain);

/* Is there more to read? A record that came as a whole has less plaintext than it has bytes, so that the first read
 * may have no more room: whoever finds it full asks again, with RECORD_BYTES. */
bool records_go_on(const struct state *st, PyObject *incoming, Py_ssize_t *room, PyObject *plain);
bool records_left(const struct state *st, PyObject *bio); /* is anything in it? */

static inline Py_ssize_t records_room(Py_ssize_t came)
{
    return came < RECORD_BYTES ? came : RECORD_BYTES;
}

/* Encrypt bytes, *count of them, which is what a record has room for: gives the ciphertext, or NULL. */
PyObject *records_make(const struct state *st, PyObject *tls, PyObject *outgoing, PyObject *plain,
                       Py_ssize_t *count);

bool tls_is_ours(const struct state *st, PyObject *protocol); /* is it a TLSProtocol? */

/* A TLSProtocol's transport has received. 1; 0: let buffer_updated() take it; -1. */
int tls_received(const struct state *st, PyObject *protocol, const void *data, int64_t count);

static inline bool cipher_is_ours(const struct endpoint *c) /* is it a TLSConnection? */
{
    return (PyObject *)Py_TYPE(c) == c->st->tls_connection;
}

/* PL_EV_CIPHER of any conn. 1; 0: let Python do it; -1: SystemExit, KeyboardInterrupt. */
int cipher_received(struct endpoint *c, const struct pl_event *e);

/* Bytes, of a TLSConnection. 1; 0: let _send_other() do it; -1. */
int cipher_send(struct endpoint *c, PyObject *message, bool framed);
PyObject *cipher_encrypt_due(PyObject *module, PyObject *conn); /* its turn has ended */

/* ---- what coroutines await ---- */

struct inbox {
    PyObject head;
    struct state *st;
    PyObject *conn; /* this, exc and waiter: None or NULL when there is none */
    struct ready *messages;
    PyObject *exc, *waiter;
    Py_ssize_t size, limit; /* of the messages, in bytes */
    char ended;
    char full;  /* has it paused its connection? */
    char woken; /* has the waiter been told? */
};

int inbox_push(PyObject *inbox, PyObject *message); /* of that type, and bytes: 0 or -1 */
PyObject *inbox_pop(struct inbox *box);             /* gives one, or NULL; there are messages */

/* Make a future that the next message wakes, and return an iterator over it, as `await` wants one; or NULL. */
PyObject *inbox_wait(struct inbox *box);
bool inbox_is_awaited(const struct inbox *box);
void inbox_wait_no_more(struct inbox *box);

enum await {
    AWAIT_OF_INBOX, /* a message, of an inbox; the others are of a connection */
    AWAIT_MESSAGE,  /* receive() */
    AWAIT_NEXT,     /* __anext__() */
    AWAIT_ROOM      /* drain() */
};

/* What awaits it. Borrows `source`, an inbox or a connection. */
PyObject *awaiting_new(struct state *st, PyObject *source, enum await what);

/* ---- the walk over a batch ---- */

struct walk {
    PyObject head;
    struct state *st;
    struct pl_event *events;
    uint32_t count, next; /* of events; the one that the walk is at stands before next */
    char unfinished;
    unsigned long long taken;
    struct endpoint **table; /* by slot: NULL or a reference */
    uint32_t table_cap;
    PyObject *others; /* a list: what to call for a kind with (slot, start, end) */
    PyObject *datagrams; /* a list: the datagram transports, or None, by slot */
};

/* A transport's input is there to be received into its protocol's buffer. 0, or -1: SystemExit, KeyboardInterrupt. */
int deliver_readable(struct endpoint *c);

/* PL_EV_DATAGRAM, and those behind it for the same transport. 1; 0: let Python do it; -1: SystemExit,
 * KeyboardInterrupt. */
int datagram_received(struct walk *w, const struct pl_event *e);

/* What was raised is its connection's only, or its datagram transport's: that is told to _fail(). 0, or -1: it is
 * still set. */
int walk_fail(const struct state *st, PyObject *conn);

/* A connection begins or ends. 1; 0: let Python do it; -1. */
int deliver_life(struct walk *w, const struct pl_event *e);

void walk_begin(struct walk *w, uint32_t count);
int walk_on(struct walk *w); /* to the batch's end: 0, or -1 */

/* ---- the loop ---- */

struct turn {
    PyObject head;
    struct state *st;
    struct pl_loop *core; /* NULL: none, or closed */
    PyObject *ready, *scheduled, *walk, *slow_hook, *task_factory;
    PyObject *signal_handlers; /* by number, a dict of asyncio's */
    Py_ssize_t cancelled; /* timers in the heap that were */
    uint64_t order;
    unsigned int ran;
    Py_ssize_t left;   /* callbacks of this run */
    PyObject *current; /* the handle that runs; borrowed from who runs it */
    char debug, closed, stopping, waiting;
    char many;         /* the next _run_once is run_forever's: turn until stopping */
    int64_t looked_at; /* by coarse_now, when the core was called last */
};

/* What Running, or asyncio, does with the same arguments. */
PyObject *turn_call_twin(struct turn *t, enum twin twin, PyObject *const *args, Py_ssize_t count,
                         PyObject *names);

PyObject *turn_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *turn_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t count,
                                    PyObject *names);
PyObject *turn_call_later(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *turn_call_at(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *turn_run_once(PyObject *self, PyObject *nothing);

#endif

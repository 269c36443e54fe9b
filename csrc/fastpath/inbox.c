/* inbox.c -- Inbox: the messages that a coroutine has not taken yet. The twin of pyloop/inbox.py.
 *
 *     walk -> inbox_push -> messages -> inbox_pop -> await conn.receive(), async for       (awaiting.c)
 *                 \-> waiter, a future of the loop's: woken once, however many messages come before its task runs
 *
 * What is rare, the ends, is Python's: pyloop/inbox.py derives its Inbox from this one. */
#include "fastpath.h"

#include <stddef.h>
#include <structmember.h>

#define FULL 2 /* of pyloop/inbox.py */

static bool is_there(PyObject *field) { return field && field != Py_None; }

/* So that no number of empty messages fits. */
static Py_ssize_t cost(PyObject *message)
{
    return PyBytes_Check(message) && PyBytes_GET_SIZE(message) ? PyBytes_GET_SIZE(message) : 1;
}

/* conn._pause(FULL) or conn._resume(FULL) */
static int tell_conn(struct inbox *box, PyObject *method)
{
    PyObject *args[] = {Py_NewRef(box->conn), PyLong_FromLong(FULL)};
    PyObject *got = args[1] ? PyObject_VectorcallMethod(method, args, 2, NULL) : NULL;
    Py_DECREF(args[0]);
    Py_XDECREF(args[1]);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int wake(struct inbox *box)
{
    if (box->woken || !is_there(box->waiter))
        return 0;
    box->woken = 1;
    PyObject *waiter = Py_NewRef(box->waiter), *got = NULL;
    PyObject *done = PyObject_CallMethodNoArgs(waiter, box->st->s_done);
    int over = done ? PyObject_IsTrue(done) : -1; /* cancelled */
    if (over == 0)
        got = PyObject_CallMethodOneArg(waiter, box->st->s_set_result, Py_None);
    Py_XDECREF(done);
    Py_XDECREF(got);
    Py_DECREF(waiter);
    return over > 0 || got ? 0 : -1;
}

int inbox_push(PyObject *self, PyObject *message)
{
    struct inbox *box = (struct inbox *)self;
    if (ready_push(box->messages, message) < 0)
        return -1;
    box->size += cost(message);
    if (wake(box) < 0) /* first: Ctrl-C may come in the middle of a pause */
        return -1;
    if (box->size < box->limit || !is_there(box->conn))
        return 0;
    box->full = 1;
    return tell_conn(box, box->st->s_pause);
}

PyObject *inbox_pop(struct inbox *box)
{
    PyObject *message = ready_pop(box->messages);
    box->size -= cost(message);
    ready_trim(box->messages);
    if (box->full && box->size * 2 <= box->limit && is_there(box->conn)) {
        box->full = 0;
        if (tell_conn(box, box->st->s_resume) < 0)
            Py_CLEAR(message);
    }
    return message;
}

/* conn._owner.loop.create_future(), and what `await` would make of that. */
PyObject *inbox_wait(struct inbox *box)
{
    const struct state *st = box->st;
    PyObject *owner = PyObject_GetAttr(is_there(box->conn) ? box->conn : Py_None, st->s_owner);
    PyObject *loop = owner ? PyObject_GetAttr(owner, st->s_loop) : NULL;
    PyObject *future = loop ? PyObject_CallMethodNoArgs(loop, st->s_create_future) : NULL;
    Py_XDECREF(owner);
    Py_XDECREF(loop);
    PyAsyncMethods *methods = future ? Py_TYPE(future)->tp_as_async : NULL;
    PyObject *waiting = NULL;
    if (methods && methods->am_await)
        waiting = methods->am_await(future);
    else if (future)
        PyErr_Format(PyExc_TypeError, "create_future() gave %R, which cannot be awaited", future);
    if (waiting) {
        box->woken = 0;
        Py_XSETREF(box->waiter, Py_NewRef(future));
    }
    Py_XDECREF(future);
    return waiting;
}

bool inbox_is_awaited(const struct inbox *box) { return is_there(box->waiter); }

void inbox_wait_no_more(struct inbox *box) { Py_CLEAR(box->waiter); }

/* ---- methods ---- */

static PyObject *inbox_push_py(PyObject *self, PyObject *message)
{
    if (!PyBytes_Check(message))
        return PyErr_Format(PyExc_TypeError, "push: expected bytes, got %R", message);
    return inbox_push(self, message) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *inbox_get(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return awaiting_new(((struct inbox *)self)->st, self, AWAIT_OF_INBOX);
}

static int inbox_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    struct inbox *box = (struct inbox *)self;
    PyObject *conn;
    if (!PyArg_ParseTuple(args, "O:Inbox", &conn))
        return -1;
    PyObject *owner = PyObject_GetAttr(conn, box->st->s_owner);
    PyObject *limit = owner ? PyObject_GetAttrString(owner, "read_limit") : NULL;
    box->limit = limit ? PyLong_AsSsize_t(limit) : -1;
    Py_XDECREF(owner);
    Py_XDECREF(limit);
    if (PyErr_Occurred())
        return -1;
    Py_XSETREF(box->conn, Py_NewRef(conn));
    return 0;
}

/* ---- memory ---- */

static PyObject *inbox_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                           PyObject *Py_UNUSED(kwargs))
{
    struct state *st = state_find(type);
    if (st && !st->inbox_end) {
        PyErr_SetString(PyExc_RuntimeError, "Inbox: not before use_inbox()");
        return NULL;
    }
    struct inbox *box = st ? (struct inbox *)type->tp_alloc(type, 0) : NULL;
    if (!box)
        return NULL;
    box->st = st;
    box->messages = (struct ready *)PyObject_CallNoArgs((PyObject *)st->Ready);
    if (!box->messages)
        Py_CLEAR(box);
    return (PyObject *)box;
}

static int inbox_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct inbox *box = (struct inbox *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(box->conn);
    Py_VISIT(box->messages);
    Py_VISIT(box->exc);
    Py_VISIT(box->waiter);
    return 0;
}

static int inbox_clear(PyObject *self)
{
    struct inbox *box = (struct inbox *)self;
    Py_CLEAR(box->conn); /* the messages stay: bytes make no cycle, and all that follows counts on the queue */
    Py_CLEAR(box->exc);
    Py_CLEAR(box->waiter);
    return 0;
}

static void inbox_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    inbox_clear(self);
    Py_CLEAR(((struct inbox *)self)->messages);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"push", inbox_push_py, METH_O,
     "Take a message from dispatch; when full, the core holds the rest."},
    {"get", inbox_get, METH_NOARGS, "Wait for a message; see Connection.receive."},
    {0},
};

#define PLACE(name) offsetof(struct inbox, name)

static PyMemberDef members[] = {
    {"conn", T_OBJECT, PLACE(conn), 0, "Whose messages; None once it is lost."},
    {"messages", T_OBJECT, PLACE(messages), READONLY, "A queue, the oldest first."},
    {"size", T_PYSSIZET, PLACE(size), 0, "Their bytes; an empty one counts as one."},
    {"ended", T_BOOL, PLACE(ended), 0, "Will no more come?"},
    {"exc", T_OBJECT, PLACE(exc), 0, "Why, or None: in good order."},
    {"waiter", T_OBJECT, PLACE(waiter), 0, "The future of who waits for a message, or None."},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Messages that a coroutine has not taken yet: see pyloop/inbox.py."},
    {Py_tp_new, inbox_new},
    {Py_tp_init, inbox_init},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_traverse, inbox_traverse},
    {Py_tp_clear, inbox_clear},
    {Py_tp_dealloc, inbox_dealloc},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.Inbox",
    .basicsize = sizeof(struct inbox),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int inbox_setup(PyObject *module, struct state *st)
{
    st->Inbox = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    st->inbox_push = st->Inbox ? PyObject_GetAttrString((PyObject *)st->Inbox, "push") : NULL;
    return st->inbox_push ? PyModule_AddType(module, st->Inbox) : -1;
}

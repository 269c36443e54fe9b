/* awaiting.c -- Awaiting: what conn.receive(), `async for` and conn.drain() await, with what a coroutine has.
 *
 *     FRESH --- first step: there is a message, or room -----------------------------> DONE
 *       \---- there is none: WAITING, in `inner`: the future's iterator, or Connection._drained() -->/
 *
 * Nothing is taken before the first step, and nothing while it waits: who is cancelled loses no message. */
#include "fastpath.h"

#include <structmember.h>

enum phase {
    FRESH,
    RUNNING,
    WAITING,
    DONE
};

struct awaiting {
    PyObject head;
    PyObject *source; /* a connection or an inbox; from the first step on the inbox, for a message */
    PyObject *inner;  /* what it waits in, or NULL */
    char what;        /* enum await */
    char phase;
};

static struct awaiting *of(PyObject *self) { return (struct awaiting *)self; }

PyObject *awaiting_new(struct state *st, PyObject *source, enum await what)
{
    struct free_list *free_list = &st->awaitings;
    PyObject *self;
    if (free_list->count) {
        self = free_list->items[--free_list->count];
        PyObject_Init(self, st->Awaiting);
        PyObject_GC_Track(self);
    } else if (!(self = st->Awaiting->tp_alloc(st->Awaiting, 0))) {
        return NULL;
    }
    of(self)->source = Py_NewRef(source);
    of(self)->inner = NULL;
    of(self)->what = (char)what;
    of(self)->phase = FRESH;
    return self;
}

/* ---- for a message ---- */

/* Have the inbox as the source. 0 or -1. */
static int find_inbox(const struct state *st, struct awaiting *a)
{
    if (a->what == AWAIT_OF_INBOX)
        return 0;
    PyObject *conn = a->source, *box = ((struct endpoint *)conn)->target;
    if (box && (PyObject *)Py_TYPE(box) == st->inbox_type) {
        a->source = Py_NewRef(box);
        Py_DECREF(conn);
        return 0;
    }
    box = PyObject_CallMethodNoArgs(conn, st->s_inbox); /* which says what is wrong */
    if (box)
        PyErr_Format(PyExc_RuntimeError, "%R has no inbox of the fast path", conn);
    Py_XDECREF(box);
    return -1;
}

static PyObject *say_end(const struct state *st, const struct awaiting *a)
{
    PyObject *got = PyObject_CallOneArg(st->inbox_end, a->source);
    if (got && a->what == AWAIT_NEXT) {
        PyErr_SetNone(PyExc_StopAsyncIteration);
        Py_CLEAR(got);
    }
    return got;
}

static void stop_waiting(struct awaiting *a)
{
    if (a->inner && a->what != AWAIT_ROOM)
        inbox_wait_no_more((struct inbox *)a->source);
    Py_CLEAR(a->inner);
}

/* Wait in `inner`. PYGEN_RETURN: it has ended, and is gone. */
static PySendResult step_inner(struct awaiting *a, PyObject **result)
{
    PySendResult sent = PyIter_Send(a->inner, Py_None, result);
    if (sent != PYGEN_NEXT)
        stop_waiting(a);
    return sent;
}

static PySendResult step_message(const struct state *st, struct awaiting *a, PyObject **result)
{
    struct inbox *box = (struct inbox *)a->source;
    while (a->inner || (!box->messages->count && !box->ended)) {
        if (!a->inner && !(a->inner = inbox_wait(box)))
            return PYGEN_ERROR;
        PySendResult sent = step_inner(a, result);
        if (sent != PYGEN_RETURN)
            return sent;
        Py_CLEAR(*result);
    }
    *result = box->messages->count ? inbox_pop(box) : say_end(st, a);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PySendResult begin_message(const struct state *st, struct awaiting *a, PyObject **result)
{
    if (find_inbox(st, a) < 0)
        return PYGEN_ERROR;
    if (!inbox_is_awaited((struct inbox *)a->source))
        return step_message(st, a, result);
    PyErr_SetString(PyExc_RuntimeError,
                    "another receive() is already waiting on this connection");
    return PYGEN_ERROR;
}

/* ---- for room ---- */

static PySendResult begin_room(const struct state *st, struct awaiting *a, PyObject **result)
{
    const struct endpoint *c = (struct endpoint *)a->source;
    if (!c->gate && (!c->writable || c->writable == Py_None)) {
        *result = Py_NewRef(Py_None);
        return PYGEN_RETURN;
    }
    a->inner = PyObject_CallMethodNoArgs(a->source, st->s_drained);
    return a->inner ? step_inner(a, result) : PYGEN_ERROR;
}

/* ---- as a coroutine ---- */

static int refuse(const struct awaiting *a)
{
    if (a->phase == RUNNING)
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
    else if (a->phase == DONE)
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return a->phase == RUNNING || a->phase == DONE ? -1 : 0;
}

static void finish(struct awaiting *a)
{
    a->phase = DONE;
    stop_waiting(a);
    Py_CLEAR(a->source);
}

/* What a step gave decides how it goes on. */
static PySendResult settle(struct awaiting *a, PySendResult sent)
{
    if (sent == PYGEN_NEXT)
        a->phase = WAITING;
    else
        finish(a);
    return sent;
}

static PySendResult awaiting_step(PyObject *self, PyObject *value, PyObject **result)
{
    struct awaiting *a = of(self);
    struct state *st = state_of(Py_TYPE(self));
    *result = NULL;
    if (refuse(a) < 0)
        return PYGEN_ERROR;
    bool fresh = a->phase == FRESH;
    if (fresh && value != Py_None) {
        PyErr_SetString(PyExc_TypeError,
                        "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    a->phase = RUNNING;
    if (a->what == AWAIT_ROOM)
        return settle(a, fresh ? begin_room(st, a, result) : step_inner(a, result));
    return settle(a, fresh ? begin_message(st, a, result) : step_message(st, a, result));
}

/* As who iterates wants it: what was yielded, or StopIteration with what was returned. */
static PyObject *tell(PySendResult sent, PyObject *result)
{
    if (sent == PYGEN_NEXT || !result)
        return result;
    PyErr_SetObject(PyExc_StopIteration, result); /* bytes, or None */
    Py_DECREF(result);
    return NULL;
}

static PyObject *awaiting_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult sent = awaiting_step(self, value, &result);
    return tell(sent, result);
}

static PyObject *awaiting_iternext(PyObject *self) { return awaiting_send(self, Py_None); }

static PyObject *awaiting_await(PyObject *self)
{
    if (of(self)->phase == WAITING) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    return Py_NewRef(self);
}

/* Raise what throw() was given: an exception, or a class with a value; and a traceback. */
static void raise_given(PyObject *const *args, Py_ssize_t count)
{
    PyObject *type = args[0], *value = count > 1 && args[1] != Py_None ? args[1] : NULL;
    PyObject *traceback = count > 2 && args[2] != Py_None ? Py_NewRef(args[2]) : NULL;
    const char *wrong = NULL;
    if (traceback && !PyTraceBack_Check(traceback)) {
        wrong = "throw() third argument must be a traceback object";
    } else if (PyExceptionInstance_Check(type)) {
        if (value)
            wrong = "instance exception may not have a separate value";
        value = type;
        type = (PyObject *)Py_TYPE(value);
        traceback = traceback || wrong ? traceback : PyException_GetTraceback(value);
    } else if (!PyExceptionClass_Check(type)) {
        wrong = "exceptions must be classes or instances deriving from BaseException";
    }
    if (!wrong) {
        PyErr_Restore(Py_NewRef(type), Py_XNewRef(value), traceback);
        return;
    }
    Py_XDECREF(traceback);
    PyErr_SetString(PyExc_TypeError, wrong);
}

/* What it waits in has nothing to say to that, and is let go. */
static PyObject *awaiting_throw(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 3)
        return PyErr_Format(PyExc_TypeError, "throw: expected 1 to 3 arguments, got %zd", count);
    if (refuse(of(self)) < 0)
        return NULL;
    finish(of(self));
    raise_given(args, count);
    return NULL;
}

static PyObject *awaiting_close(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    if (of(self)->phase == RUNNING) {
        refuse(of(self));
        return NULL;
    }
    finish(of(self));
    Py_RETURN_NONE;
}

/* ---- its names ---- */

static const char *name_of(PyObject *self)
{
    static const char *const names[] = {
        [AWAIT_OF_INBOX] = "Connection.receive",
        [AWAIT_MESSAGE] = "Connection.receive",
        [AWAIT_NEXT] = "Connection.__anext__",
        [AWAIT_ROOM] = "Connection.drain",
    };
    return names[(int)of(self)->what];
}

static PyObject *get_qualname(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(name_of(self));
}

static PyObject *get_name(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(name_of(self) + sizeof "Connection." - 1);
}

static PyObject *awaiting_repr(PyObject *self)
{
    static const char *const phases[] = {"not awaited", "running", "waiting", "done"};
    return PyUnicode_FromFormat("<awaitable %s() %s at %p>", name_of(self),
                                phases[(int)of(self)->phase], (void *)self);
}

/* ---- memory ---- */

static int awaiting_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(of(self)->source);
    Py_VISIT(of(self)->inner);
    return 0;
}

static int awaiting_clear(PyObject *self)
{
    finish(of(self));
    return 0;
}

static void awaiting_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    finish(of(self));
    struct state *st = state_if_there(type);
    struct free_list *free_list = st && st->Awaiting == type ? &st->awaitings : NULL;
    if (free_list && free_list->count < FREE_HANDLES)
        free_list->items[free_list->count++] = self;
    else
        PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"send", awaiting_send, METH_O, "Go on. Raises StopIteration with the result."},
    {"throw", FAST(awaiting_throw), METH_FASTCALL, "Raise an exception where it waits."},
    {"close", awaiting_close, METH_NOARGS, "Wait no more."},
    {0},
};

static PyGetSetDef fields[] = {
    {"__name__", get_name, NULL, "Of the method that made it.", NULL},
    {"__qualname__", get_qualname, NULL, "Of the method that made it.", NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "What awaits the next message of a connection, or room to send."},
    {Py_tp_methods, methods},
    {Py_tp_getset, fields},
    {Py_tp_repr, awaiting_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, awaiting_iternext},
    {Py_am_await, awaiting_await},
    {Py_am_send, awaiting_step},
    {Py_tp_traverse, awaiting_traverse},
    {Py_tp_clear, awaiting_clear},
    {Py_tp_dealloc, awaiting_dealloc},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.Awaiting",
    .basicsize = sizeof(struct awaiting),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int awaiting_setup(PyObject *module, struct state *st)
{
    st->Awaiting = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->Awaiting ? PyModule_AddType(module, st->Awaiting) : -1;
}

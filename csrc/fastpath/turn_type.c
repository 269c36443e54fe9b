/* turn_type.c -- the type of Turn: its attributes, which Python code of ours and of asyncio's sets, and its memory. */
#include "fastpath.h"

#include <stddef.h>
#include <structmember.h>

static PyObject *turn_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                          PyObject *Py_UNUSED(kwargs))
{
    struct state *st = state_find(type);
    struct turn *t = st ? (struct turn *)type->tp_alloc(type, 0) : NULL;
    if (t)
        t->st = st;
    return (PyObject *)t;
}

/* Have a core, and the walk over its batches. ffi.NULL: no longer. */
static PyObject *turn_use_core(PyObject *self, PyObject *args)
{
    struct turn *t = (struct turn *)self;
    PyObject *ptr, *walk;
    if (!PyArg_ParseTuple(args, "OO!:_use_core", &ptr, t->st->Walk, &walk))
        return NULL;
    if (t->walk && t->walk != walk) { /* the turn that calls this may be in it */
        PyErr_SetString(PyExc_ValueError, "_use_core: the loop has another walk");
        return NULL;
    }
    if (core_of(t->st, ptr, &t->core) < 0)
        return NULL;
    Py_XSETREF(t->walk, Py_NewRef(walk));
    if (!t->ready && !(t->ready = PyObject_CallNoArgs((PyObject *)t->st->Ready)))
        return NULL;
    Py_RETURN_NONE;
}

/* BaseEventLoop's, without a frame of Python: each wait of a coroutine makes a future, and that asks about debug. */
static PyObject *turn_create_future(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    const struct state *st = ((struct turn *)self)->st;
    return PyObject_Vectorcall(st->Future, &self, 0, st->loop_names);
}

/* Only `name` and `context`? Task takes more than a loop does. */
static bool are_known(PyObject *named)
{
    Py_ssize_t count = named ? PyTuple_GET_SIZE(named) : 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(named, i);
        if (PyUnicode_CompareWithASCIIString(name, "name") != 0 &&
            PyUnicode_CompareWithASCIIString(name, "context") != 0)
            return false;
    }
    return count <= 2;
}

/* Task(coro, loop=self, **named) */
static PyObject *new_task(const struct state *st, PyObject *self, PyObject *const *args,
                          PyObject *named)
{
    Py_ssize_t count = named ? PyTuple_GET_SIZE(named) : 0;
    PyObject *given[4] = {args[0], self};
    for (Py_ssize_t i = 0; i < count; i++)
        given[i + 2] = args[i + 1];
    PyObject *names = count ? PySequence_Concat(st->loop_names, named) : Py_NewRef(st->loop_names);
    PyObject *type = names ? PyObject_GetAttr(st->tasks, st->s_task) : NULL;
    PyObject *task = type ? PyObject_Vectorcall(type, given, 1, names) : NULL;
    Py_XDECREF(type);
    Py_XDECREF(names);
    return task;
}

/* BaseEventLoop's likewise; its own with a task factory, in debug mode, and when it has something to complain of. */
static PyObject *turn_create_task(PyObject *self, PyObject *const *args, Py_ssize_t count,
                                  PyObject *names)
{
    struct turn *t = (struct turn *)self;
    bool has_factory = t->task_factory && t->task_factory != Py_None;
    if (has_factory || t->debug || t->closed || count != 1 || !are_known(names))
        return turn_call_twin(t, TWIN_CREATE_TASK, args, count, names);
    return new_task(t->st, self, args, names);
}

static PyObject *turn_get_debug(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyBool_FromLong(((struct turn *)self)->debug);
}

/* ---- attributes ---- */

static PyObject *get_ready(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *ready = ((struct turn *)self)->ready;
    return Py_NewRef(ready ? ready : Py_None);
}

/* asyncio's __init__ sets a deque: the queue takes over what is in it. */
static int put_ready(PyObject *self, PyObject *handles, void *Py_UNUSED(closure))
{
    struct turn *t = (struct turn *)self;
    PyObject *ready = PyObject_CallNoArgs((PyObject *)t->st->Ready);
    PyObject *got = ready && handles ? PyObject_CallMethod(ready, "extend", "O", handles) : NULL;
    if (!got) {
        Py_XDECREF(ready);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_AttributeError, "_ready cannot be deleted");
        return -1;
    }
    Py_DECREF(got);
    Py_XSETREF(t->ready, ready);
    return 0;
}

static PyObject *get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *scheduled = ((struct turn *)self)->scheduled;
    return Py_NewRef(scheduled ? scheduled : Py_None);
}

static int put_scheduled(PyObject *self, PyObject *timers, void *Py_UNUSED(closure))
{
    if (!timers || !PyList_CheckExact(timers)) {
        PyErr_Format(PyExc_TypeError, "_scheduled: expected a list, got %R",
                     timers ? timers : Py_None);
        return -1;
    }
    Py_XSETREF(((struct turn *)self)->scheduled, Py_NewRef(timers));
    return 0;
}

static PyObject *get_current(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *current = ((struct turn *)self)->current;
    return Py_NewRef(current ? current : Py_None);
}

/* A flag, at the offset that closure is. */
static PyObject *get_flag(PyObject *self, void *closure)
{
    return PyBool_FromLong(*((char *)self + (uintptr_t)closure));
}

static int put_flag(PyObject *self, PyObject *value, void *closure)
{
    int truth = value ? PyObject_IsTrue(value) : 0;
    if (truth >= 0)
        *((char *)self + (uintptr_t)closure) = (char)truth;
    return truth < 0 ? -1 : 0;
}

#define FLAG(name, doc) {"_" #name, get_flag, put_flag, doc, (void *)offsetof(struct turn, name)}

static PyGetSetDef fields[] = {
    {"_ready", get_ready, put_ready, "The handles that are to run, a queue.", NULL},
    {"_scheduled", get_scheduled, put_scheduled, "The timers, a heap.", NULL},
    {"_handle_now", get_current, NULL, "The handle that runs, or None.", NULL},
    FLAG(debug, "Is it in debug mode?"),
    FLAG(closed, "Is it closed?"),
    FLAG(stopping, "Will it stop after this turn?"),
    FLAG(many, "May _run_once turn until the loop stops? Set for its next call."),
    FLAG(waiting, "May its thread be waiting, or about to? Who adds a handle then must wake it."),
    {0},
};

static PyMemberDef members[] = {
    {"_timer_cancelled_count", T_PYSSIZET, offsetof(struct turn, cancelled), 0,
     "Timers in the heap that were cancelled."},
    {"_ran", T_UINT, offsetof(struct turn, ran), 0, "Callbacks that the core has not counted yet."},
    {"_calls_left", T_PYSSIZET, offsetof(struct turn, left), READONLY,
     "How many callbacks of this run are still to be run."},
    {"_signal_handlers", T_OBJECT_EX, offsetof(struct turn, signal_handlers), 0,
     "Those of add_signal_handler, by number; asyncio's."},
    {"_task_factory", T_OBJECT, offsetof(struct turn, task_factory), 0, "See set_task_factory."},
    {"_slow_hook", T_OBJECT, offsetof(struct turn, slow_hook), 0, "See slow_callback_hook."},
    {0},
};

/* ---- memory ---- */

static int turn_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct turn *t = (struct turn *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(t->ready);
    Py_VISIT(t->scheduled);
    Py_VISIT(t->walk);
    Py_VISIT(t->slow_hook);
    Py_VISIT(t->task_factory);
    Py_VISIT(t->signal_handlers);
    return 0;
}

static int turn_clear(PyObject *self)
{
    struct turn *t = (struct turn *)self;
    Py_CLEAR(t->ready);
    Py_CLEAR(t->scheduled);
    Py_CLEAR(t->walk);
    Py_CLEAR(t->slow_hook);
    Py_CLEAR(t->task_factory);
    Py_CLEAR(t->signal_handlers);
    return 0;
}

static void turn_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    turn_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define SIGNED(text) PyDoc_STR(text "\n--\n\n") /* what inspect.signature reads */

PyMethodDef turn_methods[] = {
    {"call_soon", FAST(turn_call_soon), METH_FASTCALL | METH_KEYWORDS,
     SIGNED("call_soon($self, callback, *args, context=None)")},
    {"call_soon_threadsafe", FAST(turn_call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     SIGNED("call_soon_threadsafe($self, callback, *args, context=None)")},
    {"call_later", FAST(turn_call_later), METH_FASTCALL | METH_KEYWORDS,
     SIGNED("call_later($self, delay, callback, *args, context=None)")},
    {"call_at", FAST(turn_call_at), METH_FASTCALL | METH_KEYWORDS,
     SIGNED("call_at($self, when, callback, *args, context=None)")},
    {"_run_once", turn_run_once, METH_NOARGS, SIGNED("_run_once($self)")},
    {"create_future", turn_create_future, METH_NOARGS, "Create a Future of this loop."},
    {"create_task", FAST(turn_create_task), METH_FASTCALL | METH_KEYWORDS,
     SIGNED("create_task($self, coro, *, name=None, context=None)")},
    {"get_debug", turn_get_debug, METH_NOARGS, "Is it in debug mode?"},
    {"_use_core", turn_use_core, METH_VARARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Schedules callbacks, and turns: see pyloop/running.py."},
    {Py_tp_new, turn_new},
    {Py_tp_methods, turn_methods},
    {Py_tp_getset, fields},
    {Py_tp_members, members},
    {Py_tp_traverse, turn_traverse},
    {Py_tp_clear, turn_clear},
    {Py_tp_dealloc, turn_dealloc},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.Turn",
    .basicsize = sizeof(struct turn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int turn_setup(PyObject *module, struct state *st)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.futures");
    st->Future = asyncio ? PyObject_GetAttrString(asyncio, "Future") : NULL;
    Py_XDECREF(asyncio);
    st->tasks = PyImport_ImportModule("asyncio.tasks");
    if (!st->Future || !st->tasks || !(st->loop_names = PyTuple_Pack(1, st->s_loop)))
        return -1;
    st->Turn = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->Turn ? PyModule_AddType(module, st->Turn) : -1;
}

/* handle.c -- Handle and TimerHandle: asyncio's own, filled in where they lie, and kept for the next.
 *
 *     asyncio.Handle       | head | _context _loop _callback _args _cancelled _repr _source_traceback |
 *     TimerHandle          | ... those, _scheduled and _when of asyncio.TimerHandle, unused ... | struct timer_part |
 *
 * asyncio's are Python classes with __slots__; a slot's descriptor says where it lies (descrobject.h, structmember.h).
 * In debug mode the stdlib's are used instead (pyloop/running.py). */
#include "fastpath.h"

#include <structmember.h>

struct state *state_find(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &fastpath_module);
    return module ? PyModule_GetState(module) : NULL;
}

static void set_field(PyObject *handle, Py_ssize_t place, PyObject *value)
{
    PyObject **field = handle_field(handle, place);
    PyObject *old = *field;
    *field = Py_NewRef(value);
    Py_XDECREF(old);
}

/* ---- making one ---- */

static PyObject *allocate(struct state *st, PyTypeObject *type)
{
    struct free_list *free_list = type == st->Handle ? &st->handles : &st->timers;
    if (free_list->count == 0)
        return type->tp_alloc(type, 0);
    PyObject *handle = free_list->items[--free_list->count];
    PyObject_Init(handle, type);
    PyObject_GC_Track(handle);
    return handle;
}

static PyObject *pack(const struct state *st, PyObject *const *args, Py_ssize_t count)
{
    if (count == 0)
        return Py_NewRef(st->empty_tuple);
    PyObject *packed = PyTuple_New(count);
    for (Py_ssize_t i = 0; packed && i < count; i++)
        PyTuple_SET_ITEM(packed, i, Py_NewRef(args[i]));
    return packed;
}

PyObject *handle_new(struct state *st, PyTypeObject *type, PyObject *loop, PyObject *callback,
                     PyObject *const *args, Py_ssize_t count, PyObject *context)
{
    PyObject *packed = pack(st, args, count);
    if (!packed)
        return NULL;
    bool given = context && context != Py_None;
    context = given ? Py_NewRef(context) : PyContext_CopyCurrent();
    PyObject *handle = context ? allocate(st, type) : NULL;
    if (!handle) {
        Py_DECREF(packed);
        Py_XDECREF(context);
        return NULL;
    }
    const struct handle_places *at = &st->handle;
    *handle_field(handle, at->context) = context;
    *handle_field(handle, at->loop) = Py_NewRef(loop);
    *handle_field(handle, at->callback) = Py_NewRef(callback);
    *handle_field(handle, at->args) = packed;
    *handle_field(handle, at->cancelled) = Py_NewRef(Py_False);
    *handle_field(handle, at->repr) = Py_NewRef(Py_None);
    *handle_field(handle, at->traceback) = Py_NewRef(Py_None);
    return handle;
}

/* ---- running one ---- */

PyObject *exception_take(void)
{
    PyObject *type, *exc, *traceback;
    PyErr_Fetch(&type, &exc, &traceback);
    PyErr_NormalizeException(&type, &exc, &traceback);
    if (traceback)
        PyException_SetTraceback(exc, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return exc;
}

static int report(const struct state *st, PyObject *handle)
{
    PyObject *twin = st->twins[TWIN_REPORT_FAILED];
    if (!twin || PyErr_ExceptionMatches(PyExc_SystemExit) ||
        PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    PyObject *args[] = {handle, exception_take()};
    PyObject *done = PyObject_Vectorcall(twin, args, 2, NULL);
    Py_XDECREF(args[1]);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static PyObject *call_in(PyObject *context, PyObject *callback, PyObject *args)
{
    if (PyContext_Enter(context) < 0)
        return NULL;
    Py_INCREF(callback); /* whoever cancels the handle meanwhile lets it go */
    Py_INCREF(args);
    PyObject *got = PyObject_Vectorcall(callback, &PyTuple_GET_ITEM(args, 0),
                                        (size_t)PyTuple_GET_SIZE(args), NULL);
    if (PyContext_Exit(context) < 0)
        Py_CLEAR(got);
    Py_DECREF(args);
    Py_DECREF(callback);
    return got;
}

/* asyncio's own handle, or of a class that has its own idea of running. */
static int run_other(const struct state *st, PyObject *handle)
{
    int cancelled = handle_is_cancelled(st, handle);
    if (cancelled)
        return cancelled < 0 ? -1 : 0;
    PyObject *got = PyObject_CallMethodNoArgs(handle, st->s_run);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

int handle_run(struct state *st, PyObject *handle)
{
    PyTypeObject *type = Py_TYPE(handle);
    const struct handle_places *at = &st->handle;
    if (type != st->Handle && type != st->TimerHandle)
        return run_other(st, handle);
    if (*handle_field(handle, at->cancelled) == Py_True)
        return 0;
    PyObject *context = *handle_field(handle, at->context);
    PyObject *callback = *handle_field(handle, at->callback);
    PyObject *args = *handle_field(handle, at->args);
    if (!context || !callback || !args || !PyContext_CheckExact(context) ||
        !PyTuple_CheckExact(args))
        return run_other(st, handle); /* somebody has put something else there */
    Py_INCREF(context);
    PyObject *got = call_in(context, callback, args);
    Py_DECREF(context);
    if (!got)
        return report(st, handle);
    Py_DECREF(got);
    return 0;
}

/* ---- methods ---- */

static PyObject *cancel(struct state *st, PyObject *handle)
{
    const struct handle_places *at = &st->handle;
    set_field(handle, at->cancelled, Py_True);
    set_field(handle, at->callback, Py_None);
    set_field(handle, at->args, Py_None);
    Py_RETURN_NONE;
}

/* The loop whose handle it is, if it is one of ours that is not in debug mode. */
static struct turn *quiet_loop(const struct state *st, PyObject *handle)
{
    PyObject *loop = *handle_field(handle, st->handle.loop);
    if (!loop || !PyObject_TypeCheck(loop, st->Turn) || ((struct turn *)loop)->debug)
        return NULL;
    return (struct turn *)loop;
}

static PyObject *cancel_by_asyncio(PyObject *handle)
{
    return PyObject_CallMethod((PyObject *)Py_TYPE(handle)->tp_base, "cancel", "O", handle);
}

static PyObject *handle_cancel(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct state *st = state_of(Py_TYPE(self));
    return quiet_loop(st, self) ? cancel(st, self) : cancel_by_asyncio(self);
}

static PyObject *timer_cancel(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct state *st = state_of(Py_TYPE(self));
    struct turn *loop = quiet_loop(st, self);
    if (!loop)
        return cancel_by_asyncio(self);
    if (*handle_field(self, st->handle.cancelled) == Py_True)
        Py_RETURN_NONE;
    loop->cancelled += timer_part(st, self)->scheduled;
    return cancel(st, self);
}

static PyObject *handle_cancelled(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    PyObject *cancelled = *handle_field(self, state_of(Py_TYPE(self))->handle.cancelled);
    return Py_NewRef(cancelled ? cancelled : Py_False);
}

static PyObject *timer_get_when(PyObject *self, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble(timer_part(state_of(Py_TYPE(self)), self)->when);
}

static PyObject *timer_get_order(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(timer_part(state_of(Py_TYPE(self)), self)->order);
}

static PyObject *timer_get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(timer_part(state_of(Py_TYPE(self)), self)->scheduled);
}

static int timer_put_scheduled(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int scheduled = value ? PyObject_IsTrue(value) : 0;
    if (scheduled >= 0)
        timer_part(state_of(Py_TYPE(self)), self)->scheduled = (char)scheduled;
    return scheduled < 0 ? -1 : 0;
}

/* ---- its memory ---- */

/* asyncio's slots lie between the head and the end of its class, and are cleared and visited here: that class has no
 * dealloc but that of Python classes. All by the type alone: when the module is garbage too, it may be gone first. */
#define EACH_SLOT(at, self)                                                           \
    for (Py_ssize_t at = sizeof(PyObject); at < Py_TYPE(self)->tp_base->tp_basicsize; \
         at += (Py_ssize_t)sizeof(PyObject *))                                        \
        if (at != Py_TYPE(self)->tp_weaklistoffset) /* before 3.12 this is a slot among them */

static int handle_clear(PyObject *self)
{
    EACH_SLOT(at, self)
    Py_CLEAR(*handle_field(self, at));
    return 0;
}

static int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    EACH_SLOT(at, self)
    Py_VISIT(*handle_field(self, at));
    return 0;
}

/* Where handles of a type are kept; NULL when its module is gone, or cleared. */
static struct free_list *list_of(PyTypeObject *type)
{
    PyObject *module = ((PyHeapTypeObject *)type)->ht_module;
    struct state *st = module ? PyModule_GetState(module) : NULL;
    if (!st || (type != st->Handle && type != st->TimerHandle))
        return NULL;
    return type == st->Handle ? &st->handles : &st->timers;
}

static void handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    handle_clear(self);
    struct free_list *free_list = list_of(type);
    if (free_list && free_list->count < FREE_HANDLES)
        free_list->items[free_list->count++] = self;
    else
        PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ---- the types ---- */

static PyMethodDef handle_methods[] = {
    {"cancel", handle_cancel, METH_NOARGS, "Have it not called."},
    {"cancelled", handle_cancelled, METH_NOARGS, "Was it cancelled?"},
    {0},
};

static PyMethodDef timer_methods[] = {
    {"cancel", timer_cancel, METH_NOARGS, "Have it not called."},
    {"cancelled", handle_cancelled, METH_NOARGS, "Was it cancelled?"},
    {"__lt__", timer_before, METH_O, "Is it due before the other?"},
    {0},
};

static PyGetSetDef timer_fields[] = {
    {"_when", timer_get_when, NULL, "When it is due, by the loop's clock.", NULL},
    {"_order", timer_get_order, NULL, "Which of two that are due at once is first.", NULL},
    {"_scheduled", timer_get_scheduled, timer_put_scheduled, "Is it in the heap?", NULL},
    {0},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A callback that call_soon has scheduled."},
    {Py_tp_methods, handle_methods},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {0},
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, "A callback that call_later or call_at has scheduled."},
    {Py_tp_methods, timer_methods},
    {Py_tp_getset, timer_fields},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {0},
};

/* Not immutable: from 3.14 on no such type may have a base that is not. */
#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION)

/* Where a slot of a Python class lies; -1 with an exception. */
static Py_ssize_t place_of(PyObject *type, const char *name)
{
    PyObject *slot = PyObject_GetAttrString(type, name);
    Py_ssize_t place = -1;
    if (slot && Py_IS_TYPE(slot, &PyMemberDescr_Type))
        place = ((PyMemberDescrObject *)slot)->d_member->offset;
    else if (slot)
        PyErr_Format(PyExc_ImportError, "asyncio's %R has no slot %s", type, name);
    Py_XDECREF(slot);
    return place;
}

static int find_places(PyObject *base, struct handle_places *at)
{
    at->context = place_of(base, "_context");
    at->loop = place_of(base, "_loop");
    at->callback = place_of(base, "_callback");
    at->args = place_of(base, "_args");
    at->cancelled = place_of(base, "_cancelled");
    at->repr = place_of(base, "_repr");
    at->traceback = place_of(base, "_source_traceback");
    return PyErr_Occurred() ? -1 : 0;
}

static PyTypeObject *derive(PyObject *module, const char *name, PyObject *base, size_t extra,
                            PyType_Slot *slots)
{
    PyType_Spec spec = {
        .name = name,
        .basicsize = (int)(((PyTypeObject *)base)->tp_basicsize + (Py_ssize_t)extra),
        .flags = FLAGS,
        .slots = slots,
    };
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, base);
    if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

int handle_setup(PyObject *module, struct state *st)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.events");
    PyObject *base = asyncio ? PyObject_GetAttrString(asyncio, "Handle") : NULL;
    PyObject *timer = asyncio ? PyObject_GetAttrString(asyncio, "TimerHandle") : NULL;
    int rc = -1;
    if (base && timer && find_places(base, &st->handle) == 0) {
        st->timer_base = ((PyTypeObject *)timer)->tp_basicsize;
        st->Handle = derive(module, "pyloop._fastpath.Handle", base, 0, handle_slots);
        st->TimerHandle = derive(module, "pyloop._fastpath.TimerHandle", timer,
                                 sizeof(struct timer_part), timer_slots);
        rc = st->Handle && st->TimerHandle ? 0 : -1;
    }
    Py_XDECREF(timer);
    Py_XDECREF(base);
    Py_XDECREF(asyncio);
    return rc;
}

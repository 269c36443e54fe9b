/* handle.c -- Handle and TimerHandle: asyncio's own, filled in where they lie, and kept for the next.
 *
 *     Handle          | asyncio.Handle: head, _context _loop _callback _args and others, unused | struct handle_part |
 *     TimerHandle     | asyncio.TimerHandle: those, _scheduled and _when, unused ...... | struct timer_part ........ |
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
    PyObject *handle;
    if (free_list->count)
        handle = PyObject_Init(free_list->items[--free_list->count], type);
    else if (!(handle = PyObject_GC_New(PyObject, type)))
        return NULL;
    else
        memset(handle + 1, 0, (size_t)type->tp_basicsize - sizeof *handle);
    handle_part(handle)->cancelled = false;
    handle_part(handle)->st = st;
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
    if (type == st->TimerHandle) /* a Handle is the queue's own, until somebody else has it: see ready.c */
        PyObject_GC_Track(handle);
    return handle;
}

/* ---- methods ---- */

static PyObject *cancel(const struct state *st, PyObject *handle)
{
    handle_part(handle)->cancelled = true;
    set_field(handle, st->handle.callback, Py_None);
    set_field(handle, st->handle.args, Py_None);
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
    const struct state *st = handle_part(self)->st;
    return quiet_loop(st, self) ? cancel(st, self) : cancel_by_asyncio(self);
}

static PyObject *timer_cancel(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    const struct state *st = handle_part(self)->st;
    struct turn *loop = quiet_loop(st, self);
    if (!loop)
        return cancel_by_asyncio(self);
    if (handle_part(self)->cancelled)
        Py_RETURN_NONE;
    loop->cancelled += timer_part(self)->scheduled;
    return cancel(st, self);
}

static PyObject *handle_cancelled(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyBool_FromLong(handle_part(self)->cancelled);
}

static PyObject *get_cancelled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(handle_part(self)->cancelled);
}

static int put_cancelled(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int cancelled = value ? PyObject_IsTrue(value) : 0;
    if (cancelled >= 0)
        handle_part(self)->cancelled = (char)cancelled;
    return cancelled < 0 ? -1 : 0;
}

/* What is only known in debug mode. */
static PyObject *get_none(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure)) { Py_RETURN_NONE; }

/* asyncio's cancel() says it, should debug mode have been switched on since. */
static int put_nothing(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value),
                       void *Py_UNUSED(closure))
{
    return 0;
}

static PyObject *timer_get_when(PyObject *self, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble(timer_part(self)->when);
}

static PyObject *timer_get_order(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(timer_part(self)->order);
}

static PyObject *timer_get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(timer_part(self)->scheduled);
}

static int timer_put_scheduled(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int scheduled = value ? PyObject_IsTrue(value) : 0;
    if (scheduled >= 0)
        timer_part(self)->scheduled = (char)scheduled;
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

int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    EACH_SLOT(at, self)
    Py_VISIT(*handle_field(self, at));
    return 0;
}

static bool may_have_weakrefs(const PyTypeObject *type, PyObject *self)
{
    Py_ssize_t place = type->tp_weaklistoffset; /* < 0: CPython 3.12 and later keep them elsewhere */
    return place <= 0 || *handle_field(self, place);
}

/* Where handles of a type are kept; NULL when its module is gone, or cleared. */
static struct free_list *list_of(PyTypeObject *type)
{
    struct state *st = state_if_there(type);
    if (!st || (type != st->Handle && type != st->TimerHandle))
        return NULL;
    return type == st->Handle ? &st->handles : &st->timers;
}

static void handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (may_have_weakrefs(type, self))
        PyObject_ClearWeakRefs(self);
    handle_clear(self);
    struct free_list *free_list = list_of(type);
    if (free_list && free_list->count < FREE_HANDLES)
        free_list->items[free_list->count++] = self;
    else
        PyObject_GC_Del(self);
    Py_DECREF(type);
}

void handle_track(PyObject *handle)
{
    if (Py_TYPE(handle)->tp_dealloc == handle_dealloc && !PyObject_GC_IsTracked(handle))
        PyObject_GC_Track(handle);
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

#define OUR_FIELDS                                                                         \
    {"_cancelled", get_cancelled, put_cancelled, "Was it cancelled?", NULL},               \
        {"_repr", get_none, put_nothing, "None: in debug mode asyncio's are used.", NULL}, \
        {"_source_traceback", get_none, NULL, "None, likewise.", NULL},                    \
        {0}

static PyGetSetDef handle_fields[] = {OUR_FIELDS};

static PyGetSetDef timer_fields[] = {
    {"_when", timer_get_when, NULL, "When it is due, by the loop's clock.", NULL},
    {"_order", timer_get_order, NULL, "Which of two that are due at once is first.", NULL},
    {"_scheduled", timer_get_scheduled, timer_put_scheduled, "Is it in the heap?", NULL},
    OUR_FIELDS,
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A callback that call_soon has scheduled."},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_fields},
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
        st->Handle = derive(module, "pyloop._fastpath.Handle", base, sizeof(struct handle_part),
                            handle_slots);
        st->TimerHandle = derive(module, "pyloop._fastpath.TimerHandle", timer,
                                 sizeof(struct timer_part), timer_slots);
        rc = st->Handle && st->TimerHandle ? 0 : -1;
    }
    Py_XDECREF(timer);
    Py_XDECREF(base);
    Py_XDECREF(asyncio);
    return rc;
}

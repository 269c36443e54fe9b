/* ready.c -- Ready, the queue of handles that are to run: a ring. The messages of an inbox are in one too.
 *
 *     items [ . . h h h h . . )       first                  first + count: behind the last
 *
 * The collector looks at some hundred new objects at a time, and in a busy loop most of those are handles. So a Handle
 * of call_soon is not tracked while nobody else has it: the queue answers for what it holds. One that somebody keeps
 * is tracked when the next is scheduled, when it leaves the queue, or when it has run.
 *
 * What asyncio and other programs do to a loop's `_ready`, a deque, is here under the same names. */
#include "fastpath.h"

#define CAP_MIN 64

static inline Py_ssize_t place(const struct ready *r, Py_ssize_t index)
{
    return (r->first + index) & (r->cap - 1);
}

static int grow(struct ready *r)
{
    Py_ssize_t cap = r->cap ? r->cap * 2 : CAP_MIN;
    PyObject **items = PyMem_New(PyObject *, (size_t)cap);
    if (!items) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < r->count; i++)
        items[i] = r->items[place(r, i)];
    PyMem_Free(r->items);
    r->items = items;
    r->cap = cap;
    r->first = 0;
    return 0;
}

/* Somebody else has it, or will: the collector has to know of it. */
static PyObject *hand_out(PyObject *handle)
{
    handle_track(handle);
    return handle;
}

void ready_settle(struct ready *r)
{
    PyObject *last = r->count ? r->items[place(r, r->count - 1)] : NULL;
    if (last && Py_REFCNT(last) > 1)
        hand_out(last);
}

int ready_push(struct ready *r, PyObject *handle)
{
    ready_settle(r);
    if (r->count == r->cap && grow(r) < 0)
        return -1;
    r->items[place(r, r->count++)] = Py_NewRef(handle);
    return 0;
}

PyObject *ready_pop(struct ready *r)
{
    PyObject *handle = r->items[r->first];
    r->first = (r->first + 1) & (r->cap - 1);
    r->count--;
    return handle;
}

void ready_trim(struct ready *r)
{
    if (r->count || r->cap <= CAP_MIN)
        return;
    PyMem_Free(r->items);
    r->items = NULL;
    r->cap = r->first = 0;
}

/* ---- as a deque ---- */

static PyObject *ready_append(PyObject *self, PyObject *handle)
{
    if (ready_push((struct ready *)self, handle) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *ready_appendleft(PyObject *self, PyObject *handle)
{
    struct ready *r = (struct ready *)self;
    if (r->count == r->cap && grow(r) < 0)
        return NULL;
    r->first = (r->first - 1) & (r->cap - 1);
    r->items[r->first] = Py_NewRef(handle);
    r->count++;
    Py_RETURN_NONE;
}

static PyObject *refuse_empty(void)
{
    PyErr_SetString(PyExc_IndexError, "pop from an empty queue of callbacks");
    return NULL;
}

static PyObject *ready_popleft(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct ready *r = (struct ready *)self;
    return r->count ? hand_out(ready_pop(r)) : refuse_empty();
}

static PyObject *ready_popright(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct ready *r = (struct ready *)self;
    return r->count ? hand_out(r->items[place(r, --r->count)]) : refuse_empty();
}

static int ready_clear_items(PyObject *self)
{
    struct ready *r = (struct ready *)self, was = *r;
    r->items = NULL; /* what is let go may append */
    r->cap = r->first = r->count = 0;
    for (Py_ssize_t i = 0; i < was.count; i++)
        handle_let_go(was.items[place(&was, i)]);
    PyMem_Free(was.items);
    return 0;
}

static PyObject *ready_clear(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    ready_clear_items(self);
    Py_RETURN_NONE;
}

static PyObject *ready_extend(PyObject *self, PyObject *handles)
{
    PyObject *all = PySequence_List(handles); /* it may be this queue */
    if (!all)
        return NULL;
    int rc = 0;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(all); i++)
        rc = ready_push((struct ready *)self, PyList_GET_ITEM(all, i));
    Py_DECREF(all);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

static Py_ssize_t ready_length(PyObject *self) { return ((struct ready *)self)->count; }

static PyObject *ready_item(PyObject *self, Py_ssize_t index)
{
    struct ready *r = (struct ready *)self;
    if (index >= 0 && index < r->count)
        return Py_NewRef(r->items[place(r, index)]);
    PyErr_SetString(PyExc_IndexError, "queue of callbacks: index out of range");
    return NULL;
}

static PyObject *ready_repr(PyObject *self)
{
    PyObject *all = PySequence_List(self);
    PyObject *text = all ? PyUnicode_FromFormat("Ready(%R)", all) : NULL;
    Py_XDECREF(all);
    return text;
}

static int visit_handle(const struct ready *r, PyObject *handle, visitproc visit, void *arg)
{
    Py_VISIT(handle);
    bool is_own = Py_IS_TYPE(handle, r->st->Handle) && Py_REFCNT(handle) == 1;
    return is_own && !PyObject_GC_IsTracked(handle) ? handle_traverse(handle, visit, arg) : 0;
}

static int ready_traverse(PyObject *self, visitproc visit, void *arg)
{
    const struct ready *r = (struct ready *)self;
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t i = 0; i < r->count; i++) {
        int stop = visit_handle(r, r->items[place(r, i)], visit, arg);
        if (stop)
            return stop;
    }
    return 0;
}

static PyObject *ready_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                           PyObject *Py_UNUSED(kwargs))
{
    struct ready *r = (struct ready *)type->tp_alloc(type, 0);
    if (r)
        r->st = state_of(type);
    return (PyObject *)r;
}

static void ready_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ready_clear_items(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"append", ready_append, METH_O, "Add a handle at the end."},
    {"appendleft", ready_appendleft, METH_O, "Add a handle at the front."},
    {"popleft", ready_popleft, METH_NOARGS, "Take the first handle. Raises IndexError."},
    {"pop", ready_popright, METH_NOARGS, "Take the last handle. Raises IndexError."},
    {"clear", ready_clear, METH_NOARGS, "Let all handles go."},
    {"extend", ready_extend, METH_O, "Add several handles at the end."},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The handles that a loop is to run, first in, first out."},
    {Py_tp_methods, methods},
    {Py_tp_repr, ready_repr},
    {Py_tp_new, ready_new},
    {Py_tp_traverse, ready_traverse},
    {Py_tp_clear, ready_clear_items},
    {Py_tp_dealloc, ready_dealloc},
    {Py_sq_length, ready_length},
    {Py_sq_item, ready_item},
    {0},
};

static PyType_Spec spec = {
    .name = "pyloop._fastpath.Ready",
    .basicsize = sizeof(struct ready),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int ready_setup(PyObject *module, struct state *st)
{
    st->Ready = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return st->Ready ? PyModule_AddType(module, st->Ready) : -1;
}

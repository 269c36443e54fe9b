/* timers.c -- the heap of timers: a Python list, which others may read, as asyncio's `_scheduled`.
 *
 * Ours are compared by their numbers. asyncio's, and those of debug mode, may be among them: a comparison then runs
 * Python code, which may do anything to the list, also replace the loop's by another. So its length is looked at
 * again, and the list is kept meanwhile. */
#include "fastpath.h"

#define TRIMMED_MIN 1000

static bool is_ours(const struct state *st, PyObject *timer)
{
    return Py_IS_TYPE(timer, st->TimerHandle);
}

static bool ours_before(PyObject *a, PyObject *b)
{
    const struct timer_part *x = timer_part(a), *y = timer_part(b);
    return x->when < y->when || (x->when == y->when && x->order < y->order);
}

/* Is a before b? -1 on failure, also when the list of `count` has changed. */
static int is_before(const struct state *st, PyObject *list, Py_ssize_t count, PyObject *a,
                     PyObject *b)
{
    if (is_ours(st, a) && is_ours(st, b))
        return ours_before(a, b);
    Py_INCREF(a);
    Py_INCREF(b);
    int before = PyObject_RichCompareBool(a, b, Py_LT);
    Py_DECREF(a);
    Py_DECREF(b);
    if (before >= 0 && PyList_GET_SIZE(list) != count) {
        PyErr_SetString(PyExc_RuntimeError, "the loop's timers changed while two were compared");
        return -1;
    }
    return before;
}

static int is_before_at(const struct state *st, PyObject *list, Py_ssize_t count, Py_ssize_t i,
                        Py_ssize_t k)
{
    return is_before(st, list, count, PyList_GET_ITEM(list, i), PyList_GET_ITEM(list, k));
}

static void swap(PyObject *list, Py_ssize_t i, Py_ssize_t k)
{
    PyObject *item = PyList_GET_ITEM(list, i);
    PyList_SET_ITEM(list, i, PyList_GET_ITEM(list, k));
    PyList_SET_ITEM(list, k, item);
}

static int sift_up(const struct state *st, PyObject *list, Py_ssize_t at)
{
    Py_ssize_t count = PyList_GET_SIZE(list);
    while (at > 0) {
        Py_ssize_t parent = (at - 1) / 2;
        int before = is_before_at(st, list, count, at, parent);
        if (before <= 0)
            return before;
        swap(list, at, parent);
        at = parent;
    }
    return 0;
}

/* Have the two lines of a timer of ours in the cache that a comparison reads: a heap of many does not fit in there. */
static inline void prefetch(const struct state *st, const PyObject *timer)
{
    __builtin_prefetch(timer);
    __builtin_prefetch((const char *)timer + st->TimerHandle->tp_basicsize -
                       sizeof(struct timer_part));
}

/* While there are only ours no code runs, and the list need not be whole: each moves once, and those two levels below
 * are fetched meanwhile. Where it ended, at the bottom or at another's timer. */
static Py_ssize_t sift_down_ours(const struct state *st, PyObject *list, Py_ssize_t at)
{
    Py_ssize_t count = PyList_GET_SIZE(list), child;
    PyObject *item = PyList_GET_ITEM(list, at);
    while (is_ours(st, item) && (child = 2 * at + 1) + 1 < count) {
        Py_ssize_t below = 2 * child + 1;
        for (Py_ssize_t i = below; i < below + 4 && i < count; i++)
            prefetch(st, PyList_GET_ITEM(list, i));
        PyObject *one = PyList_GET_ITEM(list, child), *other = PyList_GET_ITEM(list, child + 1);
        if (!is_ours(st, one) || !is_ours(st, other))
            break;
        bool second = ours_before(other, one);
        if (!ours_before(second ? other : one, item))
            break;
        PyList_SET_ITEM(list, at, second ? other : one);
        at = child + second;
    }
    PyList_SET_ITEM(list, at, item);
    return at;
}

static int sift_down(const struct state *st, PyObject *list, Py_ssize_t at)
{
    Py_ssize_t count = PyList_GET_SIZE(list);
    if (at < count)
        at = sift_down_ours(st, list, at);
    for (;;) {
        Py_ssize_t child = 2 * at + 1;
        if (child >= count)
            return 0;
        if (child + 1 < count) {
            int before = is_before_at(st, list, count, child + 1, child);
            if (before < 0)
                return -1;
            child += before;
        }
        int before = is_before_at(st, list, count, child, at);
        if (before <= 0)
            return before;
        swap(list, at, child);
        at = child;
    }
}

int timers_push(const struct state *st, PyObject *list, PyObject *timer)
{
    if (PyList_Append(list, timer) < 0)
        return -1;
    Py_INCREF(list);
    int rc = sift_up(st, list, PyList_GET_SIZE(list) - 1);
    Py_DECREF(list);
    return rc;
}

PyObject *timers_pop(const struct state *st, PyObject *list)
{
    Py_ssize_t last = PyList_GET_SIZE(list) - 1;
    if (last < 0) { /* to look at the first one has run code that has taken it */
        PyErr_SetString(PyExc_RuntimeError, "the loop's timers changed while one was looked at");
        return NULL;
    }
    swap(list, 0, last);
    PyObject *first = Py_NewRef(PyList_GET_ITEM(list, last));
    Py_INCREF(list);
    if (PyList_SetSlice(list, last, last + 1, NULL) < 0 || sift_down(st, list, 0) < 0)
        Py_CLEAR(first);
    Py_DECREF(list);
    return first;
}

int timers_order(const struct state *st, PyObject *list)
{
    for (Py_ssize_t at = PyList_GET_SIZE(list) / 2 - 1; at >= 0; at--)
        if (sift_down(st, list, at) < 0)
            return -1;
    return 0;
}

/* Most timers are cancelled, soon after they were made, and lie at the end of the heap then: to take those off moves no
 * other, and the next timer gets their memory while it is in the cache. Not of few: who counts them, as asyncio's own
 * tests do, finds those that it made. Returns how many are gone. */
Py_ssize_t timers_trim(const struct state *st, PyObject *list)
{
    Py_ssize_t gone = 0, last;
    Py_INCREF(list);
    while ((last = PyList_GET_SIZE(list) - 1) >= TRIMMED_MIN) {
        PyObject *timer = PyList_GET_ITEM(list, last);
        if (!is_ours(st, timer) || !handle_part(timer)->cancelled)
            break;
        timer_part(timer)->scheduled = false;
        if (PyList_SetSlice(list, last, last + 1, NULL) < 0) {
            PyErr_Clear();
            break;
        }
        gone++;
    }
    Py_DECREF(list);
    return gone;
}

/* ---- one timer, of whatever class ---- */

/* An attribute of one that only the heap may own, and that is out of it when that code has run. */
static PyObject *attribute(PyObject *timer, const char *name)
{
    Py_INCREF(timer);
    PyObject *value = PyObject_GetAttrString(timer, name);
    Py_DECREF(timer);
    return value;
}

static int truth_of(PyObject *object, const char *name)
{
    PyObject *value = attribute(object, name);
    int truth = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return truth;
}

int handle_is_cancelled(const struct state *st, PyObject *handle)
{
    if (is_ours(st, handle) || Py_IS_TYPE(handle, st->Handle))
        return handle_part(handle)->cancelled;
    return truth_of(handle, "_cancelled");
}

int timer_when(const struct state *st, PyObject *timer, double *when)
{
    if (is_ours(st, timer)) {
        *when = timer_part(timer)->when;
        return 0;
    }
    PyObject *value = attribute(timer, "_when");
    *when = value ? PyFloat_AsDouble(value) : -1;
    Py_XDECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

int timer_set_scheduled(const struct state *st, PyObject *timer, bool scheduled)
{
    if (!is_ours(st, timer))
        return PyObject_SetAttrString(timer, "_scheduled", scheduled ? Py_True : Py_False);
    timer_part(timer)->scheduled = scheduled;
    return 0;
}

/* TimerHandle.__lt__(other), for one that is not ours: by _when, then by _order, which asyncio's have not. */
PyObject *timer_before(PyObject *self, PyObject *other)
{
    const struct state *st = handle_part(self)->st;
    double when;
    if (is_ours(st, other))
        return PyBool_FromLong(ours_before(self, other));
    if (timer_when(st, other, &when) < 0)
        return NULL;
    const struct timer_part *ours = timer_part(self);
    if (ours->when != when)
        return PyBool_FromLong(ours->when < when);
    PyObject *order = PyObject_GetAttrString(other, "_order");
    if (!order) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    unsigned long long theirs = PyLong_AsUnsignedLongLong(order);
    Py_DECREF(order);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(ours->order < theirs);
}

/* turn.c -- Turn, the base of pyloop.Loop that schedules callbacks and turns: the twin of pyloop/running.py.
 *
 *     call_soon -> ready <- call_soon_threadsafe        call_later, call_at -> scheduled
 *     run_once: tick (without the GIL) -> ready -> walk -> due timers -> ready
 *
 * Debug mode, a hook for slow callbacks, and a closed loop are Running's: its methods serve there, on the same
 * queue and heap. The GIL guards both: no Python code runs between a look at them and what follows from it, so
 * call_soon_threadsafe needs no inbox of its own, and no wake is lost. */
#include "fastpath.h"

#include <math.h>
#include <time.h>

#define LONGEST_WAIT_NS ((int64_t)1 << 62)
#define CANCELLED_MIN 50 /* cancelled timers that may stay, however few others there are */

static inline struct ready *ready_of(const struct turn *t) { return (struct ready *)t->ready; }
static inline struct walk *walk_of(const struct turn *t) { return (struct walk *)t->walk; }

/* ---- scheduling ---- */

PyObject *turn_call_twin(struct turn *t, enum twin twin, PyObject *const *args, Py_ssize_t count,
                         PyObject *names)
{
    if (!t->st->twins[twin])
        return PyErr_Format(PyExc_RuntimeError, "pyloop._fastpath without pyloop.running");
    Py_ssize_t all = count + (names ? PyTuple_GET_SIZE(names) : 0);
    PyObject **with_self = PyMem_New(PyObject *, (size_t)all + 1);
    if (!with_self)
        return PyErr_NoMemory();
    with_self[0] = (PyObject *)t;
    for (Py_ssize_t i = 0; i < all; i++)
        with_self[i + 1] = args[i];
    PyObject *got = PyObject_Vectorcall(t->st->twins[twin], with_self, (size_t)count + 1, names);
    PyMem_Free(with_self);
    return got;
}

/* Is it for Running? Also if there is a keyword other than one `context`, or not enough arguments: it complains. */
static bool is_rare(const struct turn *t, Py_ssize_t count, Py_ssize_t least, PyObject *names)
{
    if (t->debug || t->closed || !t->ready || !t->scheduled || count < least)
        return true;
    if (!names)
        return false;
    PyObject *name = PyTuple_GET_SIZE(names) == 1 ? PyTuple_GET_ITEM(names, 0) : NULL;
    if (name == t->st->s_context || name == t->st->context_seen)
        return name == NULL;
    if (!name || PyUnicode_Compare(name, t->st->s_context) != 0)
        return true;
    Py_XSETREF(t->st->context_seen, Py_NewRef(name)); /* asyncio's C code has one that is not interned */
    return false;
}

static PyObject *schedule_soon(struct turn *t, PyObject *const *args, Py_ssize_t count,
                               PyObject *names)
{
    PyObject *handle = handle_new(t->st, t->st->Handle, (PyObject *)t, args[0], args + 1,
                                  count - 1, names ? args[count] : NULL);
    if (handle && ready_push(ready_of(t), handle) < 0)
        Py_CLEAR(handle);
    return handle;
}

PyObject *turn_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t count,
                         PyObject *names)
{
    struct turn *t = (struct turn *)self;
    if (is_rare(t, count, 1, names))
        return turn_call_twin(t, TWIN_CALL_SOON, args, count, names);
    return schedule_soon(t, args, count, names);
}

PyObject *turn_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t count,
                                    PyObject *names)
{
    struct turn *t = (struct turn *)self;
    if (is_rare(t, count, 1, names))
        return turn_call_twin(t, TWIN_CALL_SOON_THREADSAFE, args, count, names);
    PyObject *handle = schedule_soon(t, args, count, names);
    if (handle && t->waiting && t->core)
        t->st->api->loop_wake(t->core);
    return handle;
}

/* Those of `all` that were not cancelled; the others know that they are no longer in the heap. */
static PyObject *keep_others(const struct turn *t, PyObject *all)
{
    PyObject *kept = PyList_New(0);
    for (Py_ssize_t i = 0; kept && i < PyList_GET_SIZE(all); i++) {
        PyObject *timer = PyList_GET_ITEM(all, i);
        int cancelled = handle_is_cancelled(t->st, timer);
        if (cancelled < 0 || (cancelled && timer_set_scheduled(t->st, timer, false) < 0) ||
            (!cancelled && PyList_Append(kept, timer) < 0))
            Py_CLEAR(kept);
    }
    return kept;
}

/* Let go of cancelled timers, if they are more than the others. Not where they are cancelled: that may be in a
 * finalizer, in the middle of a push. */
static int drop_cancelled(struct turn *t)
{
    if (t->cancelled <= CANCELLED_MIN || t->cancelled * 2 <= PyList_GET_SIZE(t->scheduled))
        return 0;
    PyObject *list = Py_NewRef(t->scheduled), *kept = NULL;
    PyObject *all = PyList_GetSlice(list, 0, PyList_GET_SIZE(list));
    int rc = all && (kept = keep_others(t, all)) ? 0 : -1;
    /* Finalizers, and timers of other classes, may have run code that schedules: then the next time. */
    if (rc == 0 && PyList_GET_SIZE(list) == PyList_GET_SIZE(all)) {
        t->cancelled = 0;
        rc = PyList_SetSlice(list, 0, PyList_GET_SIZE(list), kept);
        if (rc == 0)
            rc = timers_order(t->st, list);
    }
    Py_XDECREF(kept);
    Py_XDECREF(all); /* only now: a finalizer may schedule */
    Py_DECREF(list);
    return rc;
}

static PyObject *schedule_at(struct turn *t, double when, PyObject *const *args, Py_ssize_t count,
                             PyObject *names)
{
    struct state *st = t->st;
    if (t->cancelled)
        t->cancelled -= timers_trim(st, t->scheduled);
    if (drop_cancelled(t) < 0)
        return NULL;
    PyObject *timer = handle_new(st, st->TimerHandle, (PyObject *)t, args[1], args + 2, count - 2,
                                 names ? args[count] : NULL);
    if (!timer)
        return NULL;
    ready_settle(ready_of(t));
    struct timer_part *part = timer_part(timer);
    part->when = when;
    part->order = t->order++;
    part->scheduled = true;
    if (timers_push(st, t->scheduled, timer) < 0)
        Py_CLEAR(timer);
    return timer;
}

static int time_now(struct turn *t, double *now)
{
    /* Not clock_gettime: a loop may have a time of its own, in tests. */
    PyObject *time = PyObject_CallMethodNoArgs((PyObject *)t, t->st->s_time);
    *now = time ? PyFloat_AsDouble(time) : -1;
    Py_XDECREF(time);
    return *now == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Read seconds out of a float or int; false: Running complains about it, or knows better. */
static bool read_seconds(PyObject *number, double *seconds)
{
    if (PyFloat_CheckExact(number))
        *seconds = PyFloat_AS_DOUBLE(number);
    else if (PyLong_CheckExact(number))
        *seconds = PyLong_AsDouble(number);
    else
        return false;
    if (*seconds == -1 && PyErr_Occurred())
        PyErr_Clear();
    else if (!isnan(*seconds))
        return true;
    return false;
}

PyObject *turn_call_later(PyObject *self, PyObject *const *args, Py_ssize_t count,
                          PyObject *names)
{
    struct turn *t = (struct turn *)self;
    double delay, now;
    if (is_rare(t, count, 2, names) || !read_seconds(args[0], &delay))
        return turn_call_twin(t, TWIN_CALL_LATER, args, count, names);
    if (time_now(t, &now) < 0)
        return NULL;
    return schedule_at(t, now + delay, args, count, names);
}

PyObject *turn_call_at(PyObject *self, PyObject *const *args, Py_ssize_t count,
                       PyObject *names)
{
    struct turn *t = (struct turn *)self;
    double when;
    if (is_rare(t, count, 2, names) || !read_seconds(args[0], &when))
        return turn_call_twin(t, TWIN_CALL_AT, args, count, names);
    return schedule_at(t, when, args, count, names);
}

/* ---- the turn ---- */

/* Take off cancelled timers that are first. 1: there is one that was not; 0: none is left; -1. */
static int skip_cancelled(struct turn *t)
{
    while (PyList_GET_SIZE(t->scheduled)) {
        int cancelled = handle_is_cancelled(t->st, PyList_GET_ITEM(t->scheduled, 0));
        if (cancelled <= 0) /* that code may have taken them all */
            return cancelled < 0 ? -1 : PyList_GET_SIZE(t->scheduled) > 0;
        PyObject *timer = timers_pop(t->st, t->scheduled);
        if (!timer)
            return -1;
        t->cancelled--;
        int rc = timer_set_scheduled(t->st, timer, false);
        Py_DECREF(timer);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static int64_t wait_ns(double seconds)
{
    if (!(seconds > 0)) /* nor is NaN, of a timer of another class */
        return 0;
    double ns = ceil(seconds * 1e9);
    return ns >= (double)LONGEST_WAIT_NS ? LONGEST_WAIT_NS : (int64_t)ns;
}

/* For how long the core may wait: *ns, -1 without end. 0 or -1. */
static int time_left(struct turn *t, int64_t *ns)
{
    *ns = 0;
    if (ready_of(t)->count || t->stopping)
        return 0;
    double when, now;
    int timers = skip_cancelled(t);
    if (timers < 0)
        return -1;
    *ns = -1;
    if (timers) {
        if (timer_when(t->st, PyList_GET_ITEM(t->scheduled, 0), &when) < 0 || time_now(t, &now) < 0)
            return -1;
        *ns = wait_ns(when - now);
    }
    if (ready_of(t)->count) /* that code may have scheduled something */
        *ns = 0;
    return 0;
}

/* What the core's number stands for: Python raises it. */
static int raise_code(struct turn *t, int code)
{
    PyObject *core = PyObject_GetAttr((PyObject *)t, t->st->s_core);
    PyObject *got = core ? PyObject_CallMethod(core, "check", "i", code) : NULL;
    Py_XDECREF(core);
    Py_XDECREF(got);
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_RuntimeError, "the core returned %d", code);
    return -1;
}

/* A clock that costs a few nanoseconds and moves every few milliseconds; 0: there is none. */
static int64_t coarse_now(void)
{
#ifdef CLOCK_MONOTONIC_COARSE
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#else
    return 0;
#endif
}

/* Does add_signal_handler wait for signals? The core tells of them. */
static bool heeds_signals(PyObject *handlers)
{
    return !handlers || !PyDict_CheckExact(handlers) || PyDict_GET_SIZE(handlers);
}

/* May the system call be left out? While nothing is watched, callbacks are ready and no signal has a handler it could
 * tell of nothing: once in a few milliseconds is enough. Who wakes need not: the queue is looked at. */
static bool may_skip(const struct turn *t, int64_t now)
{
    return now && now == t->looked_at && !t->stopping && !heeds_signals(t->signal_handlers) &&
           t->st->api->loop_skip(t->core);
}

static int tick(struct turn *t)
{
    int64_t timeout_ns;
    if (time_left(t, &timeout_ns) < 0)
        return -1;
    if (!t->core) {
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
        return -1;
    }
    int64_t coarse = timeout_ns ? 0 : coarse_now();
    if (may_skip(t, coarse))
        return PyErr_CheckSignals();
    t->looked_at = coarse;
    t->waiting = timeout_ns != 0; /* from here on who adds a handle wakes: the GIL is still held */
    PyThreadState *thread = PyEval_SaveThread();
    int count = t->st->api->loop_turn(t->core, timeout_ns, t->ran);
    PyEval_RestoreThread(thread);
    t->waiting = 0;
    if (count < 0)
        return raise_code(t, count);
    t->ran = 0;
    if (count)
        walk_begin(walk_of(t), (uint32_t)count);
    return PyErr_CheckSignals(); /* should a handler raise, the next turn walks the batch */
}

/* Run those that are there now: what they add comes after another look at the fds. */
static int run_ready(struct turn *t)
{
    PyObject *queue = Py_NewRef(t->ready); /* a callback may put another one there */
    struct ready *ready = (struct ready *)queue;
    int rc = 0;
    t->left = ready->count;
    t->ran += (unsigned int)t->left;
    while (rc == 0 && t->left > 0 && ready->count) {
        t->left--;
        PyObject *handle = ready_pop(ready);
        t->current = handle;
        rc = handle_run(t->st, handle);
        t->current = NULL;
        handle_let_go(handle);
    }
    Py_DECREF(queue);
    return rc;
}

static int take_due(struct turn *t)
{
    double now, when;
    if (drop_cancelled(t) < 0 || time_now(t, &now) < 0)
        return -1;
    while (PyList_GET_SIZE(t->scheduled)) {
        if (timer_when(t->st, PyList_GET_ITEM(t->scheduled, 0), &when) < 0)
            return -1;
        if (when > now)
            return 0;
        PyObject *timer = timers_pop(t->st, t->scheduled);
        if (!timer)
            return -1;
        int cancelled = handle_is_cancelled(t->st, timer), rc = cancelled < 0 ? -1 : 0;
        if (rc == 0)
            rc = timer_set_scheduled(t->st, timer, false);
        if (cancelled > 0)
            t->cancelled--;
        else if (rc == 0)
            rc = ready_push(ready_of(t), timer);
        Py_DECREF(timer);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static bool is_watched(const struct turn *t)
{
    return t->debug || (t->slow_hook && t->slow_hook != Py_None);
}

static int turn_by_twin(struct turn *t)
{
    PyObject *got = turn_call_twin(t, TWIN_RUN_ONCE, NULL, 0, NULL);
    Py_XDECREF(got);
    return got ? 0 : -1;
}

static int turn_once(struct turn *t)
{
    struct walk *w = walk_of(t);
    if (!w->unfinished && tick(t) < 0)
        return -1;
    if (is_watched(t)) /* since the wait: another thread, or a signal handler, has switched it on */
        return turn_by_twin(t);
    if (w->unfinished) {
        /* Programs for asyncio rely on it: what was scheduled first runs first. */
        if (ready_of(t)->count && run_ready(t) < 0)
            return -1;
        if (walk_on(w) < 0)
            return -1;
    }
    if (PyList_GET_SIZE(t->scheduled) && take_due(t) < 0)
        return -1;
    return run_ready(t);
}

PyObject *turn_run_once(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct turn *t = (struct turn *)self;
    bool many = t->many;
    t->many = 0;      /* a callback that turns the loop itself wants one turn */
    t->looked_at = 0; /* which looks at the fds, as the first of each run */
    if (is_watched(t) || !t->walk || !t->ready || !t->scheduled) {
        int rc = turn_by_twin(t);
        t->many = many;
        return rc < 0 ? NULL : Py_NewRef(Py_None);
    }
    do {
        if (turn_once(t) < 0)
            return NULL;
    } while (many && !t->stopping && !is_watched(t));
    t->many = many;
    Py_RETURN_NONE;
}

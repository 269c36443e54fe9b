/* handle_run.c -- calling what a handle holds, in its context, as asyncio.Handle._run does. */
#include "fastpath.h"

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
    if (handle_part(handle)->cancelled)
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

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/identity"
)

// maxBody bounds a request's body, in bytes.
const maxBody = 64 << 10

// runServer serves the modules of this process until ctx ends or the bus stops,
// then finishes requests and events in hand and writes the summary.
func (m *Main) runServer(ctx context.Context) (err error) {
	log := slog.New(slog.NewTextHandler(m.Err, nil))
	var observers []tidings.Observer
	if m.narrate {
		log = slog.New(slog.DiscardHandler)
		observers = append(observers, lines(m.Err))
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", m.listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", m.listen, err)
	}
	s, err := open(ctx, m.Getenv, part{modules: m.modules, log: log, observers: observers, lease: m.lease, instance: m.instance})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() {
		err = errors.Join(err, s.close())
		sum, sumErr := s.summary(context.WithoutCancel(ctx))
		err = errors.Join(err, sumErr, sum.write(m.Out, m.summary), s.closeDatabase())
	}()
	address := listener.Addr().String()
	fmt.Fprintf(m.Err, "listening on http://%s\n", address)
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if m.Listening != nil {
		m.Listening(address)
	}
	select {
	case err := <-served:
		return err
	case <-s.alive.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = server.Shutdown(closing)
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

// handler has the routes of the modules that run here.
func (s *shop) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /stats", list(s.summary))
	if s.identity != nil {
		mux.HandleFunc("POST /users", s.postUser)
		mux.HandleFunc("POST /users/{userId}/announcements", s.postAnnouncement)
	}
	if s.billing != nil {
		mux.HandleFunc("POST /subscriptions", s.postSubscription)
		mux.HandleFunc("GET /profiles", list(s.billing.Profiles))
	}
	if s.notifications != nil {
		mux.HandleFunc("GET /notifications", list(s.notifications.Sent))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, pattern := mux.Handler(r)
		if pattern == "" {
			refused := &refusal{header: w.Header()}
			handler.ServeHTTP(refused, r)
			reason := "no such route in this process"
			if refused.status == http.StatusMethodNotAllowed {
				reason = "not with this method, but with " + w.Header().Get("Allow")
			}
			fail(w, refused.status, fmt.Sprintf("%s %s: %s", r.Method, r.URL.Path, reason))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// list answers with what a function returns.
func list[T any](get func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		found, err := get(r.Context())
		if err != nil {
			unavailable(w, err)
			return
		}
		answer(w, http.StatusOK, found)
	}
}

// refusal takes the mux's own answer (404 or 405), to be said in JSON.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) Write(p []byte) (int, error) { return len(p), nil }
func (r *refusal) WriteHeader(status int)      { r.status = status }

func (s *shop) postUser(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Email string `json:"email"`
		Name  string `json:"name"`
	}
	if !read(w, r, &body) {
		return
	}
	if !needed(w, "email", &body.Email, "name", &body.Name) {
		return
	}
	userID, err := s.identity.SignUp(r.Context(), body.Email, body.Name)
	if err != nil {
		unavailable(w, err)
		return
	}
	answer(w, http.StatusCreated, map[string]string{"userId": userID})
}

func (s *shop) postAnnouncement(w http.ResponseWriter, r *http.Request) {
	err := s.identity.Announce(r.Context(), r.PathValue("userId"))
	switch {
	case errors.Is(err, identity.ErrUnknown):
		fail(w, http.StatusNotFound, err.Error())
	case err != nil:
		unavailable(w, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *shop) postSubscription(w http.ResponseWriter, r *http.Request) {
	var body struct {
		UserID string `json:"userId"`
		PlanID string `json:"planId"`
	}
	if !read(w, r, &body) {
		return
	}
	if !needed(w, "userId", &body.UserID, "planId", &body.PlanID) {
		return
	}
	subscriptionID, err := s.billing.Activate(r.Context(), body.UserID, body.PlanID)
	if err != nil {
		unavailable(w, err)
		return
	}
	answer(w, http.StatusCreated, map[string]string{"subscriptionId": subscriptionID})
}

// needed trims two fields, and answers which of them are missing.
func needed(w http.ResponseWriter, firstName string, first *string, secondName string, second *string) bool {
	*first, *second = strings.TrimSpace(*first), strings.TrimSpace(*second)
	var missing []string
	if *first == "" {
		missing = append(missing, firstName)
	}
	if *second == "" {
		missing = append(missing, secondName)
	}
	if len(missing) > 0 {
		fail(w, http.StatusUnprocessableEntity, "the body has no "+strings.Join(missing, " and no "))
		return false
	}
	return true
}

// read decodes a JSON body, or answers why it cannot.
func read(w http.ResponseWriter, r *http.Request, body any) bool {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Header.Get("Content-Type") != "" && (err != nil || kind != "application/json" && kind != "application/x-www-form-urlencoded") {
		// curl -d says the latter for any text, so it is let pass.
		fail(w, http.StatusUnsupportedMediaType, "the body must be application/json")
		return false
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	err := decoder.Decode(body)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = cmp.Or(more, errors.New("something follows the object"))
		}
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody))
		return false
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "the body is no JSON object as expected: "+err.Error())
		return false
	}
	return true
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller has gone
}

func fail(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"error": text})
}

// unavailable says that an event or a row could not be stored or read: the caller
// may try again.
func unavailable(w http.ResponseWriter, err error) {
	fail(w, http.StatusServiceUnavailable, err.Error())
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	"github.com/tidings-go/tidings/examples/shop/identity"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
	"github.com/tidings-go/tidings/examples/shop/notifications"
	"github.com/tidings-go/tidings/tidingstest"
)

// The test binary is the program where a test starts processes of it.
func TestMain(m *testing.M) {
	if os.Getenv("SHOP_AS_PROGRAM") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestAProfileIsMadeOncePerUser(t *testing.T) {
	bus := tidingstest.NewBus(t)
	users := identity.New(bus.Module("identity"))
	accounts := billing.New(bus.Module("billing"))
	ada, err := users.SignUp(t.Context(), "ada@example.com", "Ada")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := users.Announce(t.Context(), ada); err != nil {
			t.Fatal(err)
		}
	}
	// Even an event with an id of its own, as a careless publisher makes it.
	careless := identityevents.UserCreated.New(ada, identityevents.UserCreatedPayload{UserID: ada, Email: "ada@example.com", Name: "Ada"})
	if err := bus.Publish(t.Context(), careless); err != nil {
		t.Fatal(err)
	}
	e := tidingstest.Expect(t, bus, identityevents.UserCreated)[0]
	profiles := accounts.Profiles()
	if len(profiles) != 1 || profiles[0] != (billing.Profile{UserID: ada, Email: "ada@example.com", EventID: e.ID()}) {
		t.Errorf("profiles %+v\n%s", profiles, bus.Story())
	}
}

func TestASubscriptionIsAnnounced(t *testing.T) {
	bus := tidingstest.NewBus(t)
	accounts := billing.New(bus.Module("billing"))
	sent := notifications.New(bus.Module("notifications"))
	id, err := accounts.Activate(t.Context(), "u-1", "pro")
	if err != nil {
		t.Fatal(err)
	}
	e := tidingstest.Expect(t, bus, billingevents.SubscriptionActivated, func(e tidings.Event[billingevents.SubscriptionActivatedPayload]) bool {
		return e.AggregateID() == id && e.Payload().PlanID == "pro"
	})[0]
	tidingstest.ExpectNone(t, bus, identityevents.UserCreated)
	if got := sent.Sent(); len(got) != 1 || got[0] != (notifications.Notification{UserID: "u-1", Kind: "subscription", EventID: e.ID()}) {
		t.Errorf("sent %+v", got)
	}
}

func TestMailThatFails(t *testing.T) {
	bus := tidingstest.NewBus(t)
	users := identity.New(bus.Module("identity"))
	sent := notifications.New(bus.Module("notifications"))
	for _, email := range []string{"grace@slow.example", "edsger@nowhere.invalid", "no address"} {
		if _, err := users.SignUp(t.Context(), email, "Somebody"); err != nil {
			t.Fatal(err)
		}
	}
	bus.Settle()
	if got := sent.Sent(); len(got) != 1 || got[0].Kind != "welcome" {
		t.Errorf("sent %+v\n%s", got, bus.Story())
	}
	for _, letter := range bus.DeadLetters() {
		if letter.Reason != "permanent" || letter.Attempts != 1 || letter.Subscription != "notifications.welcome" {
			t.Errorf("dead letter %+v", letter)
		}
	}
	if len(bus.DeadLetters()) != 2 {
		t.Errorf("%d dead letters", len(bus.DeadLetters()))
	}
}

var story = summary{Published: 5, Handled: 6, Retried: 1, Deduplicated: 2, DeadLettered: 1, Profiles: 3, Notifications: 3}

func getenv(environment map[string]string) func(string) string {
	return func(name string) string { return environment[name] }
}

func TestDemoInMemory(t *testing.T) {
	var out, errOut bytes.Buffer
	m := &Main{Out: &out, Err: &errOut, Getenv: getenv(nil)}
	if err := m.Run(t.Context(), []string{"--summary", "json"}); err != nil {
		t.Fatal(err)
	}
	var got summary
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != story {
		t.Errorf("summary %+v, want %+v (%v)", got, story, err)
	}
	for _, want := range []string{"identity       tells  identity.user.created", "≡ recognised as a duplicate", "✓ handled at attempt 2", "✗ dead letter (permanent)"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("the story does not say %q:\n%s", want, errOut.String())
		}
	}
}

// kafka returns the environment of the real broker, or skips.
func kafka(t *testing.T) map[string]string {
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" {
		if os.Getenv("TIDINGS_REQUIRE_BROKERS") == "1" {
			t.Fatal("KAFKA_BROKERS is not set and TIDINGS_REQUIRE_BROKERS is 1")
		}
		t.Skip("KAFKA_BROKERS is not set: scripts/brokers up kafka")
	}
	return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": brokers}
}

func TestDemoOnKafkaEndsAsInMemory(t *testing.T) {
	environment := kafka(t)
	var out bytes.Buffer
	m := &Main{Out: &out, Err: io.Discard, Getenv: getenv(environment)}
	if err := m.Run(t.Context(), []string{"--summary", "json"}); err != nil {
		t.Fatal(err)
	}
	var got summary
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != story {
		t.Errorf("summary %+v, want %+v (%v)", got, story, err)
	}
}

func TestDemoInTwoProcesses(t *testing.T) {
	environment := kafka(t)
	t.Setenv("SHOP_AS_PROGRAM", "1")
	var out, told bytes.Buffer
	t.Setenv("EVENT_DRIVER", "kafka")
	m := &Main{Out: &out, Err: &told, Getenv: getenv(environment)}
	if err := m.Run(t.Context(), []string{"--processes", "2", "--summary", "json"}); err != nil {
		t.Fatal(err)
	}
	var got summary
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != story {
		t.Errorf("summary %+v, want %+v (%v)", got, story, err)
	}
	if !strings.Contains(told.String(), "→ billing.create-default-profile") {
		t.Errorf("the other process tells nothing:\n%s", told.String())
	}
}

func TestTwoProcessesNeedABroker(t *testing.T) {
	m := &Main{Out: io.Discard, Err: io.Discard, Getenv: getenv(nil)}
	if err := m.Run(t.Context(), []string{"--processes", "2"}); err == nil || !strings.Contains(err.Error(), "EVENT_DRIVER=kafka") {
		t.Errorf("error %v", err)
	}
}

func TestArgumentsComplainAtOnce(t *testing.T) {
	m := &Main{Out: io.Discard, Err: io.Discard, Getenv: getenv(nil)}
	err := m.Run(t.Context(), []string{"--module", "identity,warehouse", "--summary", "xml", "--processes", "3", "more"})
	for _, want := range []string{`"warehouse"`, "xml", "--processes 3", "unknown arguments: more"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

// serve runs the server in this process and returns its address and how it ends.
func serve(t *testing.T, arguments ...string) (url string, out *bytes.Buffer, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	address := make(chan string, 1)
	out = &bytes.Buffer{}
	m := &Main{Out: out, Err: io.Discard, Getenv: getenv(map[string]string{"EVENT_ENV": "test"}), Listening: func(a string) { address <- a }}
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx, append([]string{"--serve", "--listen", "127.0.0.1:0", "--summary", "json"}, arguments...))
	}()
	select {
	case a := <-address:
		return "http://" + a, out, func() error { cancel(); return <-done }
	case err := <-done:
		cancel()
		t.Fatalf("the server ended: %v", err)
		return "", nil, nil
	}
}

func request(t *testing.T, method, url, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(content))
}

func TestServe(t *testing.T) {
	url, out, end := serve(t)
	status, text := request(t, "POST", url+"/users", `{"email":"ada@example.com","name":"Ada"}`)
	var user struct{ UserID string }
	if err := json.Unmarshal([]byte(text), &user); err != nil || status != 201 || user.UserID == "" {
		t.Fatalf("POST /users: %d %s", status, text)
	}
	status, text = request(t, "POST", url+"/subscriptions", fmt.Sprintf(`{"userId":%q,"planId":"pro"}`, user.UserID))
	var subscription struct{ SubscriptionID string }
	if err := json.Unmarshal([]byte(text), &subscription); err != nil || status != 201 || subscription.SubscriptionID == "" {
		t.Fatalf("POST /subscriptions: %d %s", status, text)
	}
	_, text = request(t, "GET", url+"/profiles", "")
	var profiles []map[string]string
	if err := json.Unmarshal([]byte(text), &profiles); err != nil || len(profiles) != 1 || len(profiles[0]) != 3 || profiles[0]["userId"] != user.UserID || profiles[0]["email"] != "ada@example.com" || profiles[0]["eventId"] == "" {
		t.Errorf("GET /profiles: %s", text)
	}
	_, text = request(t, "GET", url+"/notifications", "")
	var sent []map[string]string
	if err := json.Unmarshal([]byte(text), &sent); err != nil || len(sent) != 2 || len(sent[0]) != 3 || sent[0]["kind"] != "welcome" || sent[1]["kind"] != "subscription" || sent[1]["userId"] != user.UserID {
		t.Errorf("GET /notifications: %s", text)
	}
	if status, _ = request(t, "GET", url+"/healthz", ""); status != 200 {
		t.Errorf("GET /healthz: %d", status)
	}
	want := `{"published":2,"handled":3,"retried":0,"deduplicated":0,"deadLettered":0,"profiles":1,"notifications":2}`
	if _, text = request(t, "GET", url+"/stats", ""); text != want {
		t.Errorf("GET /stats: %s", text)
	}
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/users", `{"email":"x"}`, 422},
		{"POST", "/users", `{`, 400},
		{"POST", "/users", ``, 400},
		{"POST", "/users", `{} {}`, 400},
		{"POST", "/users", `{"email":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"GET", "/users", "", 405},
		{"GET", "/nothing", "", 404},
		{"POST", "/subscriptions", `{"planId":"pro"}`, 422},
		{"POST", "/users/nobody/announcements", "", 404},
		{"POST", "/users/" + user.UserID + "/announcements", "", 204},
	} {
		status, text := request(t, test.method, url+test.path, test.body)
		if status != test.status || status >= 400 && !strings.HasPrefix(text, `{"error":"`) {
			t.Errorf("%s %s %.20q: %d %s, want %d and an error in JSON", test.method, test.path, test.body, status, text, test.status)
		}
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	want = `{"published":3,"handled":3,"retried":0,"deduplicated":2,"deadLettered":0,"profiles":1,"notifications":2}`
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("summary %s, want %s", got, want)
	}
}

func TestServeOneModule(t *testing.T) {
	url, _, end := serve(t, "--module", "billing,notifications")
	if status, text := request(t, "POST", url+"/users", `{"email":"a@b","name":"c"}`); status != 404 {
		t.Errorf("POST /users: %d %s", status, text)
	}
	if status, text := request(t, "GET", url+"/profiles", ""); status != 200 || text != "[]" {
		t.Errorf("GET /profiles: %d %s", status, text)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// SIGTERM lets an event in hand be finished: Grace's mail is tried again before
// the process ends.
func TestSIGTERMDrains(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := &child{command: exec.CommandContext(t.Context(), program, "--serve", "--listen", "127.0.0.1:0", "--summary", "json"), read: make(chan struct{})}
	c.command.Env = append(os.Environ(), "SHOP_AS_PROGRAM=1", "EVENT_DRIVER=in-memory", "EVENT_ENV=test")
	c.command.Stdout = &out
	errors, err := c.command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	url := ""
	lines := bufio.NewScanner(errors)
	for url == "" && lines.Scan() {
		if after, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
			url = after
		}
	}
	go func() { _, _ = io.Copy(io.Discard, errors); close(c.read) }()
	if status, text := request(t, "POST", url+"/users", `{"email":"grace@slow.example","name":"Grace"}`); status != 201 {
		t.Fatalf("POST /users: %d %s", status, text)
	}
	began := time.Now()
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-c.read
	if err := c.command.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	want := `{"published":1,"handled":2,"retried":1,"deduplicated":0,"deadLettered":0,"profiles":1,"notifications":1}`
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("after %v: summary %s, want %s", time.Since(began), got, want)
	}
}

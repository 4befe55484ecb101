package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver/drivertest"
)

// The test binary is the program where a test starts processes of it.
func TestMain(m *testing.M) {
	if os.Getenv("SHOP_AS_PROGRAM") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

// inFull is the summary of the whole story.
var inFull = summary{Published: 5, Handled: 6, Retried: 1, Deduplicated: 2, DeadLettered: 1, Profiles: 3, Notifications: 3}

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
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != inFull {
		t.Errorf("summary %+v, want %+v (%v)", got, inFull, err)
	}
	for _, want := range []string{"identity       tells  identity.user.created", "≡ recognised as a duplicate", "✓ handled at attempt 2", "✗ dead letter (permanent)"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("the story does not say %q:\n%s", want, errOut.String())
		}
	}
}

// brokers are the drivers with the variable that names their real broker, and what
// the program needs besides.
var brokers = map[string]struct {
	variable    string
	environment map[string]string
}{
	"kafka":         {"KAFKA_BROKERS", nil},
	"redis-streams": {"REDIS_URL", nil},
	"redis":         {"REDIS_URL", nil},
	"sqs":           {"TIDINGS_FAUXQS_URL", nil},
	// Topics, so that each subscription has a queue of its own.
	"sqs with topics": {"TIDINGS_FAUXQS_URL", map[string]string{"EVENT_DRIVER": "sqs", "SQS_TOPICS": "true"}},
}

// onEach runs a test on each real broker, and on each database.
func onEach(t *testing.T, test func(t *testing.T, environment map[string]string)) {
	for name, broker := range brokers {
		t.Run(name, func(t *testing.T) {
			address := drivertest.Server(t, broker.variable)
			environment := map[string]string{"EVENT_DRIVER": name, broker.variable: address}
			if broker.variable == "TIDINGS_FAUXQS_URL" {
				environment["AWS_ENDPOINT_URL"] = address
			}
			maps.Copy(environment, broker.environment)
			test(t, environment)
		})
	}
	onDatabases(t, test)
}

func TestDemoOnEachDriverEndsAsInMemory(t *testing.T) {
	onEach(t, func(t *testing.T, environment map[string]string) {
		t.Parallel()
		var out bytes.Buffer
		m := &Main{Out: &out, Err: io.Discard, Getenv: getenv(environment)}
		if err := m.Run(t.Context(), []string{"--summary", "json"}); err != nil {
			t.Fatal(err)
		}
		var got summary
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != inFull {
			t.Errorf("summary %+v, want %+v (%v)", got, inFull, err)
		}
	})
}

func TestDemoInTwoProcesses(t *testing.T) {
	onEach(t, func(t *testing.T, environment map[string]string) {
		t.Setenv("SHOP_AS_PROGRAM", "1")
		for name, value := range environment {
			t.Setenv(name, value)
		}
		var out, told bytes.Buffer
		m := &Main{Out: &out, Err: &told, Getenv: getenv(environment)}
		if err := m.Run(t.Context(), []string{"--processes", "2", "--summary", "json"}); err != nil {
			t.Fatal(err)
		}
		var got summary
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != inFull {
			t.Errorf("summary %+v, want %+v (%v)", got, inFull, err)
		}
		if scenes(told.String()) != scenes(inMemory(t)) {
			t.Errorf("two processes tell\n%s\nin memory it is\n%s", scenes(told.String()), scenes(inMemory(t)))
		}
	})
}

// At most once is said where it is so.
func TestTheSummarySaysAtMostOnce(t *testing.T) {
	var out bytes.Buffer
	told := inFull
	told.expected = 9
	if err := told.write(&out, "table"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "expected 9 deliveries, received 9") || !strings.Contains(out.String(), "at most once") {
		t.Errorf("the summary is\n%s", out.String())
	}
}

// inMemory is the story as it is told in one process.
func inMemory(t *testing.T) string {
	t.Helper()
	var told bytes.Buffer
	m := &Main{Out: io.Discard, Err: &told, Getenv: getenv(nil)}
	if err := m.Run(t.Context(), []string{"--summary", "json"}); err != nil {
		t.Fatal(err)
	}
	return told.String()
}

// scenes is a story without what differs from run to run: the order in which
// subscriptions hear of an event, and how long a retry waits.
func scenes(story string) string {
	var kept []string
	for n, scene := range strings.Split(story, "\n\n") {
		lines := strings.Split(strings.TrimSpace(scene), "\n")
		if n == 0 || len(lines) < 3 || !strings.Contains(lines[1], " tells ") {
			continue // the title, and what follows the story
		}
		slices.Sort(lines[2:])
		kept = append(kept, strings.Join(lines, "\n"))
	}
	return regexp.MustCompile(`again in [0-9.]+m?s`).ReplaceAllString(strings.Join(kept, "\n\n"), "again in a moment")
}

// Reports of several processes come in any order: the event is told first.
func TestTheCauseIsToldFirst(t *testing.T) {
	var out bytes.Buffer
	n := newNarrator(&out, false)
	n.scene("Ada signs up.")
	n.report(happening{Event: "identity.user.created", Subscription: "billing.create-default-profile", Outcome: handled})
	n.report(happening{Event: "identity.user.created", Module: "identity"})
	if told, heard := strings.Index(out.String(), "tells"), strings.Index(out.String(), "→"); told < 0 || heard < told {
		t.Errorf("told:\n%s", out.String())
	}
	if err := n.await(t.Context(), 1); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.await(ended, 2); err == nil || !strings.Contains(err.Error(), "1 of 2 deliveries have ended") {
		t.Errorf("error %v", err)
	}
}

func TestColourIsForTerminals(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if isTerminal(null) {
		t.Errorf("%s is no terminal", os.DevNull)
	}
	for _, color := range []bool{false, true} {
		var out bytes.Buffer
		m := &Main{Out: &out, Err: io.Discard, Getenv: getenv(nil), Color: color}
		if err := m.Run(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "\x1b[") != color {
			t.Errorf("color %t: %q", color, out.String())
		}
	}
}

// A service that does not start says why.
func TestAProcessThatFailsIsExplained(t *testing.T) {
	t.Setenv("SHOP_AS_PROGRAM", "1")
	t.Setenv("EVENT_DRIVER", "kafka")
	t.Setenv("KAFKA_BROKERS", "nonsense")
	m := &Main{Out: io.Discard, Err: io.Discard, Getenv: os.Getenv}
	err := m.Run(t.Context(), []string{"--processes", "2"})
	if err == nil || !strings.Contains(err.Error(), "process for identity: exit status 1") || !strings.Contains(err.Error(), "KAFKA_BROKERS") {
		t.Errorf("error %v", err)
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
	return requestAs(t, "application/json", method, url, body)
}

func requestAs(t *testing.T, contentType, method, url, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
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
		{"POST", "/users", `{"email":"a@b","name":"c"} {}`, 400},
		{"POST", "/users", `{"email":"a@b","name":"c"}}`, 400},
		{"POST", "/users", `{"email":5,"name":"c"}`, 400},
		{"POST", "/users", `["email","name"]`, 400},
		{"POST", "/users", `{"email":" ","name":"c"}`, 422},
		{"POST", "/users", `{"email":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"GET", "/users", "", 405},
		{"GET", "/nothing", "", 404},
		{"DELETE", "/profiles", "", 405},
		{"POST", "/subscriptions", `{"planId":"pro"}`, 422},
		{"POST", "/users/nobody/announcements", "", 404},
		{"POST", "/users/" + user.UserID + "/announcements", "", 204},
	} {
		status, text := request(t, test.method, url+test.path, test.body)
		if status != test.status || status >= 400 && !strings.HasPrefix(text, `{"error":"`) {
			t.Errorf("%s %s %.20q: %d %s, want %d and an error in JSON", test.method, test.path, test.body, status, text, test.status)
		}
	}
	if status, text := requestAs(t, "text/plain", "POST", url+"/users", `{"email":"a@b","name":"c"}`); status != 415 || !strings.HasPrefix(text, `{"error":"`) {
		t.Errorf("text/plain: %d %s", status, text)
	}
	if status, text := requestAs(t, "text/plain", "POST", url+"/subscriptions", `{"userId":"u","planId":"pro"}`); status != 415 {
		t.Errorf("text/plain: %d %s", status, text)
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

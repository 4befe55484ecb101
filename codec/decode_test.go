package codec_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

var update = flag.Bool("update", false, "write the results of the cases in testdata anew; read every difference")

// readCase is one file of testdata/read: what a broker delivers, the exact bytes
// of the body, and what Decode makes of it. Its name begins with what becomes of
// it: accepted, repaired or dead-letter.
type readCase struct {
	path     string
	given    []byte // all before the result
	proves   string
	delivery driver.Delivery
	result   string
}

const (
	bodyMark   = "--- body\n"
	resultMark = "\n--- result\n"
)

func readCases(t testing.TB) []readCase {
	t.Helper()
	paths, err := filepath.Glob("testdata/read/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatal("no cases in testdata/read", err)
	}
	cases := make([]readCase, 0, len(paths))
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		given, result, found := bytes.Cut(content, []byte(resultMark))
		facts, body, foundBody := bytes.Cut(given, []byte(bodyMark))
		if !found || !foundBody {
			t.Fatalf("%s: not a case", path)
		}
		c := readCase{path: path, given: given, result: string(result)}
		c.delivery.Body = body
		c.delivery.Ref = place("")
		c.delivery.Key = "not.read.ever" // the TypeScript publishers use the event name
		for line := range strings.Lines(string(facts)) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch name {
			case "proves":
				c.proves = value
			case "channel":
				c.delivery.Channel = value
			case "type":
				c.delivery.Type = value
			case "position":
				c.delivery.Ref = place(value)
			case "time":
				if c.delivery.Time, err = time.Parse(time.RFC3339Nano, value); err != nil {
					t.Fatal(path, err)
				}
			case "header":
				header, text, _ := strings.Cut(value, "=")
				c.delivery.Headers = append(c.delivery.Headers, driver.Header{Name: header, Value: text})
			default:
				t.Fatalf("%s: unknown line %q", path, line)
			}
		}
		cases = append(cases, c)
	}
	return cases
}

// render writes what Decode returned, one fact a line, empty ones left out.
func render(e codec.Envelope, err error) string {
	var b strings.Builder
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
		return b.String()
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	line("id", e.ID)
	line("aggregate id", e.AggregateID)
	line("type", e.Type)
	line("version", fmt.Sprint(e.Version))
	line("readable from", fmt.Sprint(e.ReadableFrom))
	if !e.OccurredAt.IsZero() {
		line("occurred at", e.OccurredAt.Format(time.RFC3339Nano))
	}
	line("correlation id", e.CorrelationID)
	line("causation id", e.CausationID)
	line("source", e.Source)
	line("traceparent", e.Traceparent)
	line("tracestate", e.Tracestate)
	if e.Bare {
		line("bare", "yes")
	}
	line("payload", string(e.Payload))
	return b.String()
}

func TestRead(t *testing.T) {
	for _, c := range readCases(t) {
		t.Run(strings.TrimSuffix(filepath.Base(c.path), ".txt"), func(t *testing.T) {
			before := bytes.Clone(c.delivery.Body)
			e, err := codec.Decode(&c.delivery)
			got := render(e, err)
			if *update {
				content := append(append(bytes.Clone(c.given), resultMark...), got...)
				if err := os.WriteFile(c.path, content, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != c.result {
				t.Errorf("%s\ngot:\n%swant:\n%s", c.proves, got, c.result)
			}
			if dead := strings.HasPrefix(filepath.Base(c.path), "dead-letter-"); dead != (err != nil) {
				t.Errorf("%s\nerror %v in a case of that name", c.proves, err)
			}
			var format *codec.FormatError
			if err != nil && (!errors.As(err, &format) || format.Reason == "" || !strings.HasPrefix(err.Error(), "codec: ")) {
				t.Errorf("a dead letter needs a FormatError with a reason, got %#v", err)
			}
			if again, err := codec.Decode(&c.delivery); render(again, err) != got {
				t.Error("the same delivery decoded differently the second time")
			}
			if !bytes.Equal(before, c.delivery.Body) {
				t.Error("Decode changed the body")
			}
		})
	}
}

func TestFormatErrorSaysNothingOfThePayload(t *testing.T) {
	body := []byte(`{"eventType":"a.b.c","aggregateId":"1","version":"x","payload":{"password":"hunter2"}}`)
	for _, broken := range [][]byte{body, body[:len(body)-3], append(body, '!')} {
		_, err := codec.Decode(&driver.Delivery{Message: driver.Message{Body: broken}})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	}
}

// Two equal payloads are two events, because two users may have the same name
// and one user may change it back; only the place tells them from one record
// that came twice.
func TestBarePayloadsHaveTheirIDsFromTheirPlaces(t *testing.T) {
	deliver := func(offset, user int) string {
		e, err := codec.Decode(&driver.Delivery{
			Message: driver.Message{
				Key:     "identity.user.created",
				Headers: driver.Headers{{Name: driver.HeaderEventType, Value: "identity.user.created"}},
				Body:    fmt.Appendf(nil, `{"userId":"user-%d","email":"someone@example.com","name":"Ada"}`, user),
			},
			Ref: place(fmt.Sprintf("events.identity-user-created/%d/%d", offset%12, offset)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	ids := make(map[string]bool)
	for offset := range 1000 {
		id := deliver(offset, offset)
		if again := deliver(offset, offset); again != id {
			t.Fatalf("the same record has the ids %s and %s", id, again)
		}
		ids[id] = true
	}
	if len(ids) != 1000 {
		t.Errorf("1000 records have %d ids", len(ids))
	}
	if deliver(1, 7) == deliver(2, 7) {
		t.Error("equal payloads at two places have one id")
	}
}

// The parts of a derived id do not run into each other, and each of them counts.
func TestDerivedIDs(t *testing.T) {
	const form = `{"aggregateId":%q,"eventType":%q,"version":%d,"occurredAt":%q,"payload":%s}`
	seen := make(map[string]string)
	for _, body := range []string{
		fmt.Sprintf(form, "ab", "c", 1, "2026-01-02T15:04:05.000Z", `{}`),
		fmt.Sprintf(form, "a", "bc", 1, "2026-01-02T15:04:05.000Z", `{}`),
		fmt.Sprintf(form, "a", "bc", 2, "2026-01-02T15:04:05.000Z", `{}`),
		fmt.Sprintf(form, "a", "bc", 2, "2026-01-02T15:04:05.001Z", `{}`),
		fmt.Sprintf(form, "a", "bc", 2, "2026-01-02T15:04:05.001Z", `{"a":1}`),
	} {
		var ids [2]string
		for i, where := range []place{"here", "there"} {
			e, err := codec.Decode(&driver.Delivery{Message: driver.Message{Body: []byte(body)}, Ref: where})
			if err != nil {
				t.Fatal(err)
			}
			ids[i] = e.ID
		}
		if ids[0] != ids[1] || ids[0] == "" {
			t.Errorf("%s published twice has the ids %q", body, ids)
		}
		if other := seen[ids[0]]; other != "" {
			t.Errorf("%s and %s have one id", body, other)
		}
		seen[ids[0]] = body
	}
}

func TestDecodeOfNothing(t *testing.T) {
	for _, d := range []*driver.Delivery{nil, {}, {Message: driver.Message{Value: 7}}} {
		var format *codec.FormatError
		if _, err := codec.Decode(d); !errors.As(err, &format) {
			t.Errorf("got %v", err)
		}
	}
}

package tidings_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

type card struct {
	Holder string `json:"holder"`
	Number int64  `json:"number" tidings:"sensitive"`
}

type sensitivePerson struct {
	Name    string            `json:"name"`
	Email   string            `json:"email" tidings:"sensitive"`
	Born    time.Time         `json:"born" tidings:"sensitive"`
	Token   uuid.UUID         `json:"token" tidings:"sensitive"`
	Card    card              `json:"card"`
	Spare   *card             `json:"spare,omitempty"`
	Cards   []card            `json:"cards"`
	ByBank  map[string]card   `json:"byBank"`
	Answers map[string]string `json:"answers" tidings:"sensitive"`
	Seal    []byte            `json:"seal" tidings:"sensitive"`
	Level   int               `json:"level"`
}

var personMoved = tidings.Define[sensitivePerson]("people.person.moved", 1, tidings.Repeatable)

const (
	plantedEmail  = "planted-email@example.org"
	plantedNumber = 4929123456789012
	plantedAnswer = "planted-answer"
)

func plantedPerson() sensitivePerson {
	return sensitivePerson{
		Name: "Ada", Email: plantedEmail, Born: time.Date(1815, 12, 10, 0, 0, 0, 0, time.UTC), Token: uuid.MustParse("11111111-2222-4333-8444-555555555555"),
		Card: card{"Ada", plantedNumber}, Spare: &card{"Ada", plantedNumber}, Cards: []card{{"Ada", plantedNumber}}, ByBank: map[string]card{"first": {"Ada", plantedNumber}},
		Answers: map[string]string{plantedAnswer: plantedAnswer}, Seal: []byte("planted-seal"), Level: 3,
	}
}

// leaked is what of the planted person is in a text.
func leaked(text string) (found []string) {
	for _, secret := range []string{plantedEmail, fmt.Sprint(plantedNumber), plantedAnswer, "1815", "11111111", "cGxhbnRlZC1zZWFs", "planted-seal"} {
		if strings.Contains(text, secret) {
			found = append(found, secret)
		}
	}
	return found
}

func TestSensitiveFieldsAreMasked(t *testing.T) {
	e := personMoved.New("p-1", plantedPerson())
	const want = `{"name":"Ada","email":"***","born":"***","token":"***","card":{"holder":"Ada","number":"***"},"spare":{"holder":"Ada","number":"***"},` +
		`"cards":[{"holder":"Ada","number":"***"}],"byBank":{"first":{"holder":"Ada","number":"***"}},"answers":"***","seal":"***","level":3}`
	if got := tidings.Masked(e); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for given, want := range map[string]string{
		`{"EMAIL":"planted-email@example.org","email":1815}`:                                              `{"EMAIL":"***","email":"***"}`, // as encoding/json finds it
		`{"name":"Ada","planted-seal":"planted-seal"}`:                                                    `{"name":"Ada","***":"***"}`,    // of a newer version
		`{"card":"planted-seal","cards":{"a":"1815"},"byBank":[1815],"level":{"a":1815},"name":["1815"]}`: `{"card":"***","cards":"***","byBank":"***","level":"***","name":"***"}`,
		`{"card":null,"spare":null,"cards":[null]}`:                                                       `{"card":null,"spare":null,"cards":[null]}`,
		`{"name":"a\u0022b","card":{}}`:                                                                   `{"name":"a\u0022b","card":{}}`,
		`[1815]`:                                                                                          `(6 bytes, hidden: not a JSON object)`,
		`{"email":"planted-email@example.org"`:                                                            `(36 bytes, hidden: not a JSON object)`,
		``:                                                                                                `(0 bytes, hidden: not a JSON object)`,
	} {
		if got := personMoved.Masked([]byte(given)); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", given, got, want)
		}
	}
	if got := tidings.Masked(nil); got != "(no event)" {
		t.Error(got)
	}
}

func TestAnEmbeddedSensitiveStructIsMasked(t *testing.T) {
	type Contact struct {
		Phone string `json:"phone"`
	}
	type Address struct {
		Street string `json:"street"`
		Door   string `json:"door" tidings:"sensitive"`
	}
	type payload struct {
		Contact `tidings:"sensitive"`
		Address
	}
	contract := tidings.Define[payload]("people.person.met", 1, tidings.Repeatable)
	if got := tidings.Masked(contract.New("p", payload{Contact{"1"}, Address{"Long Lane", "2"}})); got != `{"phone":"***","street":"Long Lane","door":"***"}` {
		t.Error(got)
	}
}

func TestDefineRefusesAnUnknownTag(t *testing.T) {
	type misspelled struct {
		A string `json:"a" tidings:"sensitiv"`
	}
	type empty struct {
		A string `json:"a" tidings:""`
	}
	type deep struct {
		List []misspelled `json:"list"`
	}
	for name, text := range map[string]string{"misspelled": define[misspelled](), "empty": define[empty](), "deep": define[deep]()} {
		if !strings.Contains(text, `has the tag tidings:"`) || !strings.Contains(text, `the one word there is "sensitive"`) {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// Everything that Tidings itself says of an event whose fields are sensitive, at
// the loudest level and however it fails, has none of them.
func TestNothingSensitiveIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		d := newQueue(true)
		b := tidings.New(d, &tidings.Options{Logger: logger})
		subscribe(t, b, "people", &tidings.SubscribeOptions{MaxAttempts: 1}, personMoved, func(_ context.Context, e tidings.Event[sensitivePerson]) error {
			logger.Info("an event", "event", e, "text", fmt.Sprintf("%v %+v %s", e, e, e))
			return errors.New("the bank is closed")
		})
		whole, err := json.Marshal(plantedPerson())
		if err != nil {
			t.Fatal(err)
		}
		payloads := []string{
			string(whole), `{"card":{"number":"4929123456789012"}}`, `{"card":{"number":4929123456789012.5}}`, `{"born":"1815-planted-seal"}`, `{"token":"11111111-planted-seal"}`,
			`{"seal":"planted-seal!"}`, `{"email":1815.5}`, `{"answers":{"planted-answer":1815}}`,
		}
		for n, payload := range payloads {
			d.messages = append(d.messages, &queued{Message: driver.Message{ID: fmt.Sprint(n), Channel: personMoved.Channel(),
				Body: fmt.Appendf(nil, `{"id":"%d","aggregateId":"p-%d","eventType":"people.person.moved","payload":%s}`, n, n, payload)}})
		}
		stop := start(t, b)
		pass(time.Minute)
		synctest.Wait()
		if len(d.letters) != len(payloads) {
			t.Errorf("%d dead letters of %d", len(d.letters), len(payloads))
		}
		for _, letter := range d.letters {
			if found := leaked(letter.Err + letter.Stack + letter.Reason + b.Masked(&letter)); found != nil {
				t.Errorf("%v is in the dead letter %q, shown as %s", found, letter.Err, b.Masked(&letter))
			}
		}
		err = b.Publish(t.Context(), personMoved.New("p", sensitivePerson{Answers: map[string]string{plantedAnswer + "\xff": plantedAnswer}}))
		if err == nil || leaked(err.Error()) != nil {
			t.Errorf("refused with %v", err)
		}
		stop()
		if found := leaked(log.String()); found != nil || !strings.Contains(log.String(), "the bank is closed") {
			t.Errorf("%v is in the log:\n%s", found, log.String())
		}
	})
}

func TestBytesOfAnUnknownTypeStayHidden(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	subscribe(t, b, "people", nil, personMoved, func(context.Context, tidings.Event[sensitivePerson]) error { return nil })
	for name, test := range map[string]struct {
		letter driver.DeadLetter
		want   string
	}{
		"known": {driver.DeadLetter{Body: []byte(`{"id":"1","aggregateId":"p","eventType":"people.person.moved","payload":{"name":"Ada","email":"planted-email@example.org"}}`)},
			`{"name":"Ada","email":"***"}`},
		"a bare payload": {driver.DeadLetter{Channel: "people.person.moved", Body: []byte(`{"email":"planted-email@example.org"}`)}, `{"email":"***"}`},
		"unknown":        {driver.DeadLetter{Body: []byte(`{"id":"1","aggregateId":"p","eventType":"people.person.gone","payload":{"email":"planted-email@example.org"}}`)}, "hidden"},
		"unreadable":     {driver.DeadLetter{Channel: "people.person.moved", Body: []byte(`planted-email@example.org`)}, "(25 bytes, hidden"},
		"a value":        {driver.DeadLetter{Value: tidings.DomainEvent(personMoved.New("p", plantedPerson()))}, `"email":"***"`},
	} {
		got := b.Masked(&test.letter)
		if !strings.Contains(got, test.want) || leaked(got) != nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}

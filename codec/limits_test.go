package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// Records made to cost their reader more than they cost their writer. Whether they
// are read or refused, Decode takes a few times their size in memory, and an error
// has a length that a log can bear.
func TestHostileRecords(t *testing.T) {
	const size = 1 << 20
	repeat := func(part string) string { return strings.Repeat(part, size/len(part)) }
	whole := func(member string) string {
		return `{"id":"1","aggregateId":"u-1","eventType":"a.b.c","occurredAt":"2026-01-02T03:04:05.000Z","version":1,` + member + `"payload":{}}`
	}
	numbered := func(value string) string {
		var b strings.Builder
		for n := 0; b.Len() < size; n++ {
			fmt.Fprintf(&b, `"m%d":%s,`, n, value)
		}
		return b.String()
	}
	sns := func(message string) string {
		text, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		return `{"Type":"Notification","MessageId":"1","TopicArn":"t","Message":` + string(text) + `}`
	}
	for name, c := range map[string]struct {
		body string
		want string // part of the error; "" when it is read
	}{
		"deep objects":            {repeat(`{"a":`), "nested deeper than 128 levels"},
		"deep arrays":             {`{"a":` + repeat("["), "nested deeper than 128 levels"},
		"deep in the payload":     {`{"eventType":"a.b.c","aggregateId":"u","payload":{"a":` + repeat("[") + repeat("]") + `}}`, "nested deeper than 128 levels"},
		"deep in a notification":  {sns(repeat(`{"a":`)), "nested deeper than 128 levels"},
		"128 levels":              {whole(`"x":` + strings.Repeat("[", 127) + strings.Repeat("]", 127) + ","), ""},
		"129 levels":              {whole(`"x":` + strings.Repeat("[", 128) + strings.Repeat("]", 128) + ","), "nested deeper than 128 levels"},
		"many members":            {whole(numbered("1")), ""},
		"one name many times":     {whole(repeat(`"id":"1",`)), ""},
		"many payloads":           {whole(repeat(`"payload":{},`)), ""},
		"a long string":           {whole(`"x":"` + repeat("a") + `",`), ""},
		"a long escaped string":   {whole(`"x":"` + repeat(`\u0041`) + `",`), ""},
		"a long name":             {whole(`"` + repeat("a") + `":1,`), ""},
		"a long escaped name":     {whole(`"` + repeat(`\u0041`) + `":1,`), ""},
		"a long number":           {whole(`"x":` + repeat("9") + ","), ""},
		"a long id":               {whole(`"id":"` + repeat("a") + `",`), "id has"},
		"a long escaped id":       {whole(`"id":"` + repeat(`\u0041`) + `",`), "id has"},
		"a long number as id":     {whole(`"id":` + repeat("9") + `,`), "id has"},
		"a long aggregate id":     {whole(`"aggregateId":"` + repeat("a") + `",`), "aggregateId has"},
		"a long type":             {whole(`"eventType":"` + repeat("a") + `",`), "eventType has"},
		"a long version":          {whole(`"version":` + repeat("9") + `,`), "version is"},
		"a long version of zeros": {whole(`"version":1.` + repeat("0") + `,`), ""},
		"a long time":             {whole(`"occurredAt":"` + repeat("2") + `",`), ""},
		"a long correlation id":   {whole(`"correlationId":"` + repeat("a") + `",`), ""},
		"a long trace":            {whole(`"traceparent":"` + repeat("0") + `",`), ""},
		"a long notification":     {sns(whole(`"x":"` + repeat("a") + `",`)), ""},
		"no JSON":                 {repeat("\xff"), "not a JSON object"},
		"a string":                {`"` + repeat("a") + `"`, "not an object"},
		"space":                   {repeat(" "), "empty"},
		"space around":            {repeat(" ") + whole("") + repeat("\n"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(c.body)
			d := &driver.Delivery{Message: driver.Message{Channel: "a.b.c", Body: body}, Ref: place("here")}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e, err := codec.Decode(d)
			runtime.ReadMemStats(&after)
			if allocated, most := after.TotalAlloc-before.TotalAlloc, 4*uint64(len(body))+64<<10; allocated > most {
				t.Errorf("%d bytes were allocated for a body of %d", allocated, len(body))
			}
			var format *codec.FormatError
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (!errors.As(err, &format) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one that says %q", err, c.want)
			case err != nil && len(err.Error()) > maxErrorText:
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if len(e.ID) > 256 || len(e.CorrelationID) > 256 || len(e.Traceparent) > 128 {
				t.Errorf("it has an id of %d bytes, a correlation id of %d and a trace of %d", len(e.ID), len(e.CorrelationID), len(e.Traceparent))
			}
		})
	}
}

func TestHostileHeaders(t *testing.T) {
	long := strings.Repeat("a", 4<<20)
	many := make(driver.Headers, 100_000)
	for n := range many {
		many[n] = driver.Header{Name: "x", Value: "y"}
	}
	for name, c := range map[string]struct {
		headers driver.Headers
		want    string
	}{
		"many":                   {many, "100000 headers, at most 256 are read"},
		"as many as are read":    {many[:256], ""},
		"a long name":            {driver.Headers{{Name: long, Value: "x"}}, ""},
		"a long value":           {driver.Headers{{Name: "x", Value: long}}, ""},
		"a long type":            {driver.Headers{{Name: driver.HeaderEventType, Value: long}}, "event type has"},
		"a long id":              {driver.Headers{{Name: driver.HeaderEventID, Value: long}}, "header eventId has"},
		"a long version":         {driver.Headers{{Name: driver.HeaderEventVersion, Value: strings.Repeat("9", 4<<20)}}, "header eventVersion is"},
		"a long aggregate id":    {driver.Headers{{Name: driver.HeaderAggregateID, Value: long}}, "header aggregateId has"},
		"a NUL in the id":        {driver.Headers{{Name: driver.HeaderEventID, Value: "a\x00"}}, "has a NUL"},
		"an id that is no UTF-8": {driver.Headers{{Name: driver.HeaderEventID, Value: "\xff"}}, "is not UTF-8"},
		"a long time":            {driver.Headers{{Name: driver.HeaderTimestamp, Value: long}}, ""},
		"a long trace":           {driver.Headers{{Name: driver.HeaderTraceparent, Value: long}}, ""},
		"a long content type":    {driver.Headers{{Name: "content-type", Value: long}}, ""},
		"a long specversion":     {driver.Headers{{Name: "ce_specversion", Value: long}}, "specversion is"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := codec.Decode(&driver.Delivery{Message: driver.Message{Channel: "a.b.c", Body: []byte(`{"n":1}`), Headers: c.headers}, Ref: place("here")})
			var format *codec.FormatError
			if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &format) || !strings.Contains(err.Error(), c.want) || len(err.Error()) > maxErrorText) {
				t.Errorf("error %.300v, want one that says %q", err, c.want)
			}
		})
	}
}

// What no reader would take is not written.
func TestHostileEvents(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*codec.Envelope)
		want   string
	}{
		"a long id":  {func(e *codec.Envelope) { e.ID = strings.Repeat("a", 4<<20) }, "ID has 4194304 bytes"},
		"a NUL":      {func(e *codec.Envelope) { e.AggregateID = "a\x00" }, "AggregateID has a NUL"},
		"not UTF-8":  {func(e *codec.Envelope) { e.CorrelationID = "\xff" }, "CorrelationID is not UTF-8"},
		"a far year": {func(e *codec.Envelope) { e.OccurredAt = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) }, "year 10000"},
		"no JSON":    {func(e *codec.Envelope) { e.Payload = bytes.Repeat([]byte("x"), 1<<20) }, "not a JSON object"},
		"a deep payload": {func(e *codec.Envelope) {
			e.Payload = []byte(strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200))
		}, "nested deeper than 128 levels"},
		"as deep as is read": {func(e *codec.Envelope) {
			e.Payload = []byte(strings.Repeat(`{"a":`, 127) + "1" + strings.Repeat("}", 127))
		}, ""},
	} {
		for _, written := range []codec.Codec{codec.DomainEvents(), codec.CloudEvents()} {
			e := everything()
			c.change(&e)
			_, _, err := written.Encode(&e, kafka)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > maxErrorText) {
				t.Errorf("%s, %s: %v", name, written.Name(), err)
			}
			if err == nil {
				if _, err := codec.Decode(delivered(t, written, e, redis)); err != nil {
					t.Errorf("%s, %s: written and not read: %v", name, written.Name(), err)
				}
			}
		}
	}
}
